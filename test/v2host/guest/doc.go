// Package guest has the tests that are run inside the machine: they use the program as a user does and look at what it
// makes of the host. They are built with the tag "guest" alone, since they take the machine for their own.
package guest
