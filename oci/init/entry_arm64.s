#include "textflag.h"

// entry: see entry.go. The Go code that it calls has R28, here called g, for its goroutine.
TEXT ·entry(SB),NOSPLIT|NOFRAME,$0
	MOVD	RSP, R0
	MOVD	R0, ·kernel(SB)
	MOVD	$·g(SB), g
	MOVD	$·stack(SB), R1
	ADD	$(1048576-32), R1
	MOVD	R1, RSP
	MOVD	R0, 8(RSP)
	CALL	·begin(SB)
	MOVD	·kernel(SB), R0
	MOVD	R0, RSP
	JMP	_rt0_arm64_linux(SB)

// onSignal ends the process as a shell says that a signal has.
TEXT ·onSignal(SB),NOSPLIT|NOFRAME,$0
	ADD	$128, R0
	MOVD	$94, R8             // exit_group
	SVC
	UNDEF
