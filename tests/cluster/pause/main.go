// Process 1 of a pod's sandbox, and of a node's namespaces: holds them, and reaps what ends in them.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for {
		// What ended before the first signal was heard is reaped with the next.
		for {
			if pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 {
				break
			}
		}
		if got := <-signals; got != syscall.SIGCHLD {
			return
		}
	}
}
