#include "textflag.h"

// entry: see entry.go. The Go code that it calls has R14 and the word before what FS points to for its goroutine, and X15 for zero.
TEXT ·entry(SB),NOSPLIT|NOFRAME,$0
	MOVQ	SP, BX
	MOVQ	SP, ·kernel(SB)
	MOVQ	$158, AX            // arch_prctl
	MOVQ	$0x1002, DI         // ARCH_SET_FS
	LEAQ	·thread+8(SB), SI
	SYSCALL
	LEAQ	·g(SB), R14
	MOVQ	R14, ·thread(SB)
	LEAQ	·stack+(1048576-16)(SB), SP
	ANDQ	$~15, SP
	XORPS	X15, X15
	MOVQ	BX, 0(SP)
	CALL	·begin(SB)
	MOVQ	·kernel(SB), SP
	JMP	_rt0_amd64_linux(SB)

// onSignal ends the process as a shell says that a signal has.
TEXT ·onSignal(SB),NOSPLIT|NOFRAME,$0
	ADDQ	$128, DI
	MOVQ	$231, AX            // exit_group
	SYSCALL
	INT	$3
