module github.com/yare-dev/yare/test/runtimepeers

go 1.26.0
