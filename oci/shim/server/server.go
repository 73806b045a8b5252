package server

func Run(fd int) error { return nil }
