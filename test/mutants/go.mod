module github.com/yare-dev/yare/test/mutants

go 1.26.0
