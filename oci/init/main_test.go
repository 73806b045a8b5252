package main

import (
	"bufio"
	"debug/elf"
	"encoding/binary"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/yare-dev/yare/oci/ocitest"
)

// TestNeedsNoRuntime looks at the machine code of all that may run before the Go runtime does, or without it: none of it calls what
// works only with it. What the code calls by address alone, the functions that it gives to others are, and those are looked at too.
func TestNeedsNoRuntime(t *testing.T) {
	t.Parallel()
	if runtime.GOARCH != "amd64" {
		t.Skip("calls are read as amd64 has them")
	}
	program := filepath.Join(t.TempDir(), "yare-init")
	if err := ocitest.Build(program, ocitest.Entry); err != nil {
		t.Fatal(err)
	}
	calls := callsOf(t, program)
	const plan = "github.com/yare-dev/yare/oci/plan"
	// Reached by an interface.
	todo := []string{"main.begin", plan + ".(*Container).Fields", plan + ".(*Process).Fields"}
	seen := map[string]bool{}
	for len(todo) > 0 {
		f := todo[0]
		todo = todo[1:]
		if seen[f] {
			continue
		}
		seen[f] = true
		if len(calls[f]) == 0 && !leaf.MatchString(f) {
			t.Errorf("%s is not in the program", f)
		}
		for _, to := range calls[f] {
			switch {
			case leaf.MatchString(to), fatal.MatchString(to), spare.MatchString(f + " " + to):
			case strings.HasPrefix(to, "runtime."):
				t.Errorf("%s calls %s", f, to)
			default:
				todo = append(todo, to)
			}
		}
	}
	for f := range calls {
		if initializer.MatchString(f) {
			t.Errorf("%s sets variables, but nobody runs it", f)
		}
	}
	for _, f := range []string{"main.copyData", "main.copyOne.func1"} { // values of functions
		if !seen[f] {
			t.Errorf("%s is not seen", f)
		}
	}
	if len(seen) < 100 {
		t.Errorf("only %d functions are called", len(seen))
	}
}

var (
	// leaf is what needs nothing: it works on the memory that it is given.
	leaf = regexp.MustCompile(`^(runtime\.(memmove|memequal|memclrNoHeapPointers|cmpstring|duff.*)|internal/runtime/syscall/linux\.Syscall6|runtime\.countrunes)$`)
	// fatal is what is called when there is no going on: for want of stack, of which there is enough, or for a fault of ours; and the
	// collector's barriers, which are never up.
	fatal = regexp.MustCompile(`^runtime\.(morestack.*|panic.*|goPanic.*|gopanic|gcWriteBarrier.*|wb.*|entry.*|sigpanic.*)$`)
	// initializer sets variables that may be used before the Go runtime runs it.
	initializer = regexp.MustCompile(`^(main|\S+/oci/(init/bare|plan|wire|launch))\.init(\.\S+)?$`)
	// spare is what the codec calls for memory if it has not been given any. The two others make
	// names of errors and signals that have none, for which bare does not ask them.
	spare = regexp.MustCompile(`^(\S+/oci/wire\..+ runtime\.(growslice|makeslice|slicebytetostring)|syscall\.(Errno\.Error|Signal\.String) \S+)$`)
)

// callsOf reads which functions of a program call which, or have the address of one that is a closure's or of a pointer to one, which
// is what a function is as a value.
func callsOf(t *testing.T, program string) map[string][]string {
	t.Helper()
	dump := exec.Command("go", "tool", "objdump", program)
	out, err := dump.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := dump.Start(); err != nil {
		t.Fatal(err)
	}
	transfer := regexp.MustCompile(`\t(?:CALL|JMP|J[A-Z]+|LEAQ) (\S.*?)\(SB\)`) // types have spaces
	constant := regexp.MustCompile(`0x([0-9a-f]+)\t+([0-9a-f]+)\t+LEAQ (0x[0-9a-f]+)\(IP\)`)
	begins, pointer := functionsOf(t, program)
	calls := map[string][]string{}
	function := ""
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := lines.Text()
		if name, ok := strings.CutPrefix(line, "TEXT "); ok {
			function, _, _ = strings.Cut(name, "(SB)")
			continue
		}
		if m := constant.FindStringSubmatch(line); m != nil {
			if f := begins[pointer(hexadecimal(t, m[1])+uint64(len(m[2])/2)+hexadecimal(t, m[3]))]; f != "" {
				calls[function] = append(calls[function], f)
			}
		}
		m := transfer.FindStringSubmatch(line)
		if m == nil || m[1] == function || strings.Contains(line, "LEAQ") && !strings.Contains(m[1], ".func") {
			continue
		}
		calls[function] = append(calls[function], m[1])
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if err := dump.Wait(); err != nil {
		t.Fatal(err)
	}
	return calls
}

func hexadecimal(t *testing.T, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// functionsOf returns the names of a program's functions by where they begin, and what reads a word of its constants.
func functionsOf(t *testing.T, program string) (begins map[uint64]string, word func(address uint64) uint64) {
	t.Helper()
	file, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	symbols, err := file.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	begins = map[uint64]string{}
	for _, s := range symbols {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC {
			begins[s.Value] = s.Name
		}
	}
	constants := file.Section(".rodata")
	b, err := constants.Data()
	if err != nil {
		t.Fatal(err)
	}
	return begins, func(address uint64) uint64 {
		if address < constants.Addr || address+8 > constants.Addr+uint64(len(b)) {
			return 0
		}
		return binary.LittleEndian.Uint64(b[address-constants.Addr:])
	}
}
