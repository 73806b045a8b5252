// Command work is what the campaign's containers run: it does what can be checked afterwards.
//
//	work count LINES CODE        writes so many numbered lines and exits with the code
//	work until CODE              writes numbered lines until SIGTERM, then how many they were, and exits with the code
//	work say TEXT CODE           writes the text and exits with the code
//	work idle                    waits to be killed
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// interval is the time between two lines of until.
const interval = 20 * time.Millisecond

func main() {
	args := append(os.Args[1:], "", "", "")
	switch args[0] {
	case "count":
		for i := range number(args[1]) {
			fmt.Println("line", i)
		}
		os.Exit(number(args[2]))
	case "until":
		os.Exit(until(number(args[1])))
	case "say":
		fmt.Println(args[1])
		os.Exit(number(args[2]))
	case "idle":
		time.Sleep(1000 * time.Hour)
	}
	os.Exit(125)
}

func until(code int) int {
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	for i := 0; ; i++ {
		select {
		case <-end:
			fmt.Println("end", i)
			return code
		case <-time.After(interval):
			fmt.Println("line", i)
		}
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		fmt.Println(err)
		os.Exit(125)
	}
	return n
}
