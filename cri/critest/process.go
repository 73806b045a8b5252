package critest

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func processCases() []Case {
	return []Case{
		{"without a command the image's entrypoint and command run", 0, processImage},
		{"arguments take the place of the image's command", 0, processArgs},
		{"a command takes the place of entrypoint and command", 0, processCommand},
		{"a command and arguments take the place of both", 0, processBoth},
		{"arguments are not looked into", 0, processVerbatim},
		{"a program without a slash is looked up in the image's PATH", 0, processPath},
		{"the image says where it runs", 0, processImageDir},
		{"the container says where it runs", 0, processDir},
		{"a folder that is not there is made", 0, processDirMade},
		{"the image's environment is there", 0, processImageEnv},
		{"the container's environment goes before the image's", 0, processEnv},
		{"a variable may hold anything", 0, processEnvAny},
		{"an empty variable is there", 0, processEnvEmpty},
		{"the image's PATH holds", 0, processEnvPath},
		{"the home folder is the user's", 0, processHome},
		{"with a terminal there is a kind of terminal", 0, processTerm},
		{"without stdin there is nothing to read", 0, processNoStdin},
		{"it has no file open but the usual", 0, processFiles},
		{"it is the first process of its namespace", 0, processFirst},
		{"orphans are reaped with it", 0, processOrphans},
	}
}

// app is a container of the image that has everything.
func (t *T) app(change func(*containerConfig)) *containerConfig {
	t.Helper()
	c := t.config()
	t.with(t.images.app)(c)
	change(c)
	return c
}

func (t *T) appPrints(want string, change func(*containerConfig)) {
	t.Helper()
	t.prints(want, t.any(), t.app(change))
}

func processImage(t *T) { t.appPrints("entry image-argument\n", func(*containerConfig) {}) }

func processArgs(t *T) {
	t.appPrints("entry a b\n", func(c *containerConfig) { c.Args = []string{"a", "b"} })
}

func processCommand(t *T) {
	t.appPrints("only\n", func(c *containerConfig) { c.Command = []string{"echo", "only"} })
}

func processBoth(t *T) {
	t.appPrints("x y\n", func(c *containerConfig) { c.Command, c.Args = []string{"echo", "x"}, []string{"y"} })
}

func processVerbatim(t *T) {
	t.appPrints("$HOME *  'a' \\n\n", func(c *containerConfig) {
		c.Command, c.Args = []string{"printf", "%s\\n"}, []string{"$HOME *  'a' \\n"}
	})
}

func processPath(t *T) {
	t.appPrints("found\n", func(c *containerConfig) { c.Command = []string{"echo", "found"} })
}

func processImageDir(t *T) {
	t.appPrints("/work\n", func(c *containerConfig) { c.Command = []string{"pwd"} })
}

func processDir(t *T) {
	t.appPrints("/tmp\n", func(c *containerConfig) { c.Command, c.WorkingDir = []string{"pwd"}, "/tmp" })
}

func processDirMade(t *T) {
	c := t.config("pwd")
	c.WorkingDir = "/new/folder"
	t.prints("/new/folder\n", t.any(), c)
}

func (t *T) envPrints(want, script string, env ...*runtimeapi.KeyValue) {
	t.Helper()
	c := t.script(script)
	c.Envs = env
	t.prints(want, t.any(), c)
}

func variable(key, value string) *runtimeapi.KeyValue {
	return &runtimeapi.KeyValue{Key: key, Value: []byte(value)}
}

func processImageEnv(t *T) { t.envPrints("yes\n", "echo $IMAGE") }
func processEnv(t *T)      { t.envPrints("no\n", "echo $IMAGE", variable("IMAGE", "no")) }

func processEnvAny(t *T) {
	const odd = "a=b  'c' \"d\" $e \\ \n ü"
	t.envPrints(odd+"\n", `printf '%s\n' "$ODD"`, variable("ODD", odd))
}

func processEnvEmpty(t *T) {
	t.envPrints("set\n", "echo ${NOTHING-un}set", variable("NOTHING", ""))
}

func processEnvPath(t *T) { t.envPrints("/bin\n", "echo $PATH") }

func processHome(t *T) {
	c := t.script("echo $HOME")
	t.prints("/root\n", t.any(), c)
	c = t.script("echo $HOME")
	security(c).RunAsUsername = "alice"
	t.prints("/home/alice\n", t.any(), c)
}

func processTerm(t *T) {
	c := t.script("echo $TERM; tty >/dev/null && echo terminal")
	c.Tty = true
	t.prints("xterm\nterminal\n", t.any(), c)
}

func processNoStdin(t *T) { t.prints("end\n", t.any(), t.script("cat; echo end")) }

func processFiles(t *T) {
	t.prints("0\n1\n2\n3\n", t.any(), t.config("ls", "/proc/self/fd")) // the last is the folder that it reads
}

func processFirst(t *T) { t.prints("1\n", t.any(), t.script("echo $$")) }

func processOrphans(t *T) {
	s, _ := t.finish(t.any(), t.script("(sleep 100000 &) ; exit 4"))
	if s.ExitCode != 4 {
		t.Errorf("%v", s)
	}
}

func userCases() []Case {
	return []Case{
		{"it is root where nobody says otherwise", 0, userRoot},
		{"the image says who it is", 0, userImage},
		{"a number is taken", 0, userNumber},
		{"a number without an account has group 0", 0, userNoAccount},
		{"a number with an account has its groups", 0, userAccount},
		{"a name is looked up in the image", 0, userName},
		{"a name that the image has not is refused", 0, userUnknown},
		{"a group is taken with a user", 0, userGroup},
		{"a group without a user is refused", 0, userGroupAlone},
		{"supplemental groups are added to the image's", 0, userMerge},
		{"the strict policy takes no groups of the image's", 31, userStrict},
		{"a group twice is a group", 0, userTwice},
		{"a process that is added is the same user", 0, userExec},
		{"a user may read what is for a supplemental group", 0, userReads},
		{"a program may gain privileges", 0, userPrivileges},
		{"with no new privileges it may not", 0, userNoNewPrivileges},
	}
}

const whoami = "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n)"

func (t *T) is(want string, change func(*runtimeapi.LinuxContainerSecurityContext)) {
	t.Helper()
	c := t.script(whoami)
	change(security(c))
	t.prints(want+"\n", t.any(), c)
}

type securityContext = runtimeapi.LinuxContainerSecurityContext

func number(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

func userRoot(t *T) { t.is("0 0 0 10", func(*securityContext) {}) }

func userImage(t *T) {
	t.appPrints("1000 1001 50 1001\n", func(c *containerConfig) { c.Command = []string{"sh", "-c", whoami} })
}

func userNumber(t *T) { t.is("4321 0 0", func(s *securityContext) { s.RunAsUser = number(4321) }) }

func userNoAccount(t *T) {
	t.is("4321 0 0 77", func(s *securityContext) { s.RunAsUser, s.SupplementalGroups = number(4321), []int64{77} })
}

func userAccount(t *T) {
	t.is("1000 1001 50 1001", func(s *securityContext) { s.RunAsUser = number(1000) })
}

func userName(t *T) {
	t.is("1000 1001 50 1001", func(s *securityContext) { s.RunAsUsername = "alice" })
}

func userUnknown(t *T) {
	c := t.script(whoami)
	security(c).RunAsUsername = "nobody-here"
	t.refused("an unknown user", t.runs(t.any(), c))
}

func userGroup(t *T) {
	t.is("1000 3000 50 3000", func(s *securityContext) { s.RunAsUser, s.RunAsGroup = number(1000), number(3000) })
}

func userGroupAlone(t *T) {
	c := t.script(whoami)
	security(c).RunAsGroup = number(3000)
	t.refused("a group without a user", t.runs(t.any(), c))
}

func userMerge(t *T) {
	t.is("1000 1001 50 1001 2000 3000", func(s *securityContext) { s.RunAsUsername, s.SupplementalGroups = "alice", []int64{2000, 3000} })
}

func userStrict(t *T) {
	t.is("1000 1001 1001 2000", func(s *securityContext) {
		s.RunAsUsername, s.SupplementalGroups, s.SupplementalGroupsPolicy = "alice", []int64{2000}, runtimeapi.SupplementalGroupsPolicy_Strict
	})
}

func userTwice(t *T) {
	t.is("1000 1001 50 1001", func(s *securityContext) { s.RunAsUsername, s.SupplementalGroups = "alice", []int64{50, 1001, 50} })
}

func userExec(t *T) {
	id := t.sleeper(t.any(), func(c *containerConfig) {
		security(c).RunAsUsername, security(c).SupplementalGroups = "alice", []int64{2000}
	})
	t.wantExec(id, "1000 1001 50 1001 2000\n", "sh", "-c", whoami)
}

func userReads(t *T) {
	dir := t.folder()
	set := t.script("echo for the group > /data/file; chown 0:2000 /data/file; chmod 640 /data/file")
	mount := []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: dir}}
	set.Mounts = mount
	t.prints("", t.any(), set)
	for groups, want := range map[int64]string{2000: "for the group\n", 2001: "denied\n"} {
		c := t.script("cat /data/file 2>/dev/null || echo denied")
		c.Mounts, security(c).RunAsUser, security(c).SupplementalGroups = mount, number(4321), []int64{groups}
		t.prints(want, t.any(), c)
	}
}

func (t *T) privileges(want string, none bool) {
	t.Helper()
	c := t.config("grep", "^NoNewPrivs", "/proc/self/status")
	security(c).RunAsUser, security(c).NoNewPrivs = number(4321), none
	t.prints("NoNewPrivs:\t"+want+"\n", t.any(), c)
}

func userPrivileges(t *T)      { t.privileges("0", false) }
func userNoNewPrivileges(t *T) { t.privileges("1", true) }
