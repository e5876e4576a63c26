// Command probe is what the cluster's own test runs in its pods: a server, a client that resolves names through
// the pod's resolver, and the two things that an ordinary container must not do and a privileged one must.
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	if len(os.Args) < 2 {
		exit(fmt.Errorf("usage: probe serve PORT|get URL [--insecure]|lookup NAME|mtu LINK|set-mtu LINK BYTES|print FILE"))
	}
	exit(map[string]func([]string) error{
		"serve": serve, "get": get, "lookup": lookup, "mtu": mtu, "set-mtu": setMTU, "print": printFile,
	}[os.Args[1]](os.Args[2:]))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve answers every request with the pod's name until SIGTERM.
func serve(args []string) error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go func() {
		<-stop
		fmt.Println("stopped")
		os.Exit(0)
	}()
	fmt.Println("serving as", name, "on port", args[0])
	return http.ListenAndServe(":"+args[0], http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, name)
	}))
}

// get fails on what does not answer, not on what answers with an error: the API server refuses strangers.
func get(args []string) error {
	client := http.Client{Timeout: 3 * time.Second}
	if len(args) > 1 && args[1] == "--insecure" {
		client.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	}
	answer, err := client.Get(args[0])
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

func lookup(args []string) error {
	addresses, err := net.LookupHost(args[0])
	for _, address := range addresses {
		fmt.Println(address)
	}
	return err
}

func mtu(args []string) error {
	link, err := net.InterfaceByName(args[0])
	if err != nil {
		return err
	}
	fmt.Println(link.MTU)
	return nil
}

// setMTU needs CAP_NET_ADMIN in the network namespace, like anything that sets up a redirect.
func setMTU(args []string) error {
	bytes, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	var request struct { // struct ifreq
		name [syscall.IFNAMSIZ]byte
		mtu  int32
		_    [20]byte
	}
	copy(request.name[:syscall.IFNAMSIZ-1], args[0])
	request.mtu = int32(bytes)
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(socket), syscall.SIOCSIFMTU, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return fmt.Errorf("set the MTU of %s: %w", args[0], errno)
	}
	return nil
}

func printFile(args []string) error {
	content, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(content)
	return err
}
