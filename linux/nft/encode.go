package nft

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Attribute and message numbers of linux/netfilter/nf_tables.h that x/sys lacks.
const (
	setFlagEval        = 0x20 // NFT_SET_EVAL: rules may add elements
	maxElementsPayload = 60000
)

// attrs is a list of netlink attributes being written.
type attrs []byte

func (a *attrs) head(typ uint16, size int) {
	*a = binary.NativeEndian.AppendUint16(*a, uint16(size+4))
	*a = binary.NativeEndian.AppendUint16(*a, typ)
}

func (a *attrs) pad() {
	for len(*a)%4 != 0 {
		*a = append(*a, 0)
	}
}

func (a *attrs) put(typ uint16, data []byte) {
	a.head(typ, len(data))
	*a = append(*a, data...)
	a.pad()
}

// text writes a string with the zero that the kernel wants.
func (a *attrs) text(typ uint16, s string) {
	a.head(typ, len(s)+1)
	*a = append(append(*a, s...), 0)
	a.pad()
}

func (a *attrs) u32(typ uint16, v uint32) {
	a.head(typ, 4)
	*a = binary.BigEndian.AppendUint32(*a, v)
}

func (a *attrs) u64(typ uint16, v uint64) {
	a.head(typ, 8)
	*a = binary.BigEndian.AppendUint64(*a, v)
}

// nest writes what f writes as the content of an attribute.
func (a *attrs) nest(typ uint16, f func(*attrs)) {
	start := len(*a)
	a.head(typ|unix.NLA_F_NESTED, 0)
	f(a)
	binary.NativeEndian.PutUint16((*a)[start:], uint16(len(*a)-start))
}

// Batch is a transaction being written. It cannot be used again after Commit.
type Batch struct {
	buf   []byte
	count int    // messages
	sets  uint32 // numbers of the sets made in this batch
	last  int    // start of the last message
	err   error
}

// Empty reports whether there is nothing to do.
func (b *Batch) Empty() bool { return b.count == 0 && b.err == nil }

// Messages returns the number of messages.
func (b *Batch) Messages() int { return b.count }

// message appends one message; f writes its attributes.
func (b *Batch) message(typ, flags uint16, f func(*attrs)) {
	b.last = len(b.buf)
	b.count++
	b.buf = appendHeader(b.buf, unix.NFNL_SUBSYS_NFTABLES<<8|typ, flags, uint32(b.count), unix.NFPROTO_INET, 0)
	a := attrs(b.buf)
	f(&a)
	b.buf = a
	binary.NativeEndian.PutUint32(b.buf[b.last:], uint32(len(b.buf)-b.last))
}

// appendHeader appends an nlmsghdr and an nfgenmsg.
func appendHeader(buf []byte, typ, flags uint16, seq uint32, family byte, id uint16) []byte {
	buf = binary.NativeEndian.AppendUint32(buf, 20)
	buf = binary.NativeEndian.AppendUint16(buf, typ)
	buf = binary.NativeEndian.AppendUint16(buf, flags|unix.NLM_F_REQUEST)
	buf = binary.NativeEndian.AppendUint32(buf, seq)
	buf = binary.NativeEndian.AppendUint32(buf, 0)
	buf = append(buf, family, unix.NFNETLINK_V0)
	return binary.BigEndian.AppendUint16(buf, id)
}

func (b *Batch) addTable(name string) {
	b.message(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, func(a *attrs) { a.text(unix.NFTA_TABLE_NAME, name) })
}

func (b *Batch) deleteTable(name string) {
	b.message(unix.NFT_MSG_DELTABLE, 0, func(a *attrs) { a.text(unix.NFTA_TABLE_NAME, name) })
}

func (b *Batch) addChain(table, name string, c *Chain) {
	b.message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, func(a *attrs) {
		a.text(unix.NFTA_CHAIN_TABLE, table)
		a.text(unix.NFTA_CHAIN_NAME, name)
		if h := c.Hook; h != nil {
			a.nest(unix.NFTA_CHAIN_HOOK, func(a *attrs) {
				a.u32(unix.NFTA_HOOK_HOOKNUM, uint32(h.Point))
				a.u32(unix.NFTA_HOOK_PRIORITY, uint32(h.Priority))
			})
			a.text(unix.NFTA_CHAIN_TYPE, h.Type)
		}
	})
}

func (b *Batch) deleteChain(table, name string) {
	b.message(unix.NFT_MSG_DELCHAIN, 0, func(a *attrs) {
		a.text(unix.NFTA_CHAIN_TABLE, table)
		a.text(unix.NFTA_CHAIN_NAME, name)
	})
}

// flushChain deletes all rules of a chain.
func (b *Batch) flushChain(table, name string) {
	b.message(unix.NFT_MSG_DELRULE, 0, func(a *attrs) {
		a.text(unix.NFTA_RULE_TABLE, table)
		a.text(unix.NFTA_RULE_CHAIN, name)
	})
}

func (b *Batch) addRule(table, chain string, r Rule) {
	exprs, err := r.encode()
	if err != nil {
		b.err = err
		return
	}
	b.message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, func(a *attrs) {
		a.text(unix.NFTA_RULE_TABLE, table)
		a.text(unix.NFTA_RULE_CHAIN, chain)
		a.put(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, exprs)
		a.put(unix.NFTA_RULE_USERDATA, userdata(digest(exprs)))
	})
}

func (b *Batch) addSet(table, name string, s *Set) {
	b.sets++
	b.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, func(a *attrs) {
		a.text(unix.NFTA_SET_TABLE, table)
		a.text(unix.NFTA_SET_NAME, name)
		a.u32(unix.NFTA_SET_ID, b.sets)
		a.u32(unix.NFTA_SET_KEY_TYPE, typeID(s.Key))
		a.u32(unix.NFTA_SET_KEY_LEN, uint32(s.keyLen()))
		var flags uint32
		if s.IsMap() {
			flags |= unix.NFT_SET_MAP
		}
		if s.Dynamic {
			flags |= setFlagEval | unix.NFT_SET_TIMEOUT
		}
		if s.Ranges {
			flags |= unix.NFT_SET_INTERVAL
		}
		a.u32(unix.NFTA_SET_FLAGS, flags)
		switch {
		case s.Verdicts:
			a.u32(unix.NFTA_SET_DATA_TYPE, 0xffffff00) // NFT_DATA_VERDICT
			a.u32(unix.NFTA_SET_DATA_LEN, 16)
		case s.IsMap():
			a.u32(unix.NFTA_SET_DATA_TYPE, typeID(s.Data))
			a.u32(unix.NFTA_SET_DATA_LEN, uint32(Width(s.Data)))
		}
		if s.Timeout > 0 {
			a.u64(unix.NFTA_SET_TIMEOUT, uint64(s.Timeout.Milliseconds()))
		}
		if s.Size > 0 {
			a.nest(unix.NFTA_SET_DESC, func(a *attrs) { a.u32(unix.NFTA_SET_DESC_SIZE, s.Size) })
		}
	})
}

func (b *Batch) deleteSet(table, name string) {
	b.message(unix.NFT_MSG_DELSET, 0, func(a *attrs) {
		a.text(unix.NFTA_SET_TABLE, table)
		a.text(unix.NFTA_SET_NAME, name)
	})
}

// elements adds or deletes the elements with the given keys, in as few messages
// as the 16-bit length of an attribute allows. Keys are deleted without data.
func (b *Batch) elements(typ uint16, table, name string, s *Set, keys []string, data map[string]string) {
	flags := uint16(0)
	if typ == unix.NFT_MSG_NEWSETELEM {
		flags = unix.NLM_F_CREATE
	}
	for len(keys) > 0 {
		b.message(typ, flags, func(a *attrs) {
			a.text(unix.NFTA_SET_ELEM_LIST_TABLE, table)
			a.text(unix.NFTA_SET_ELEM_LIST_SET, name)
			a.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(a *attrs) {
				start := len(*a)
				for len(keys) > 0 && len(*a)-start < maxElementsPayload {
					b.element(a, s, keys[0], data)
					keys = keys[1:]
				}
			})
		})
	}
}

func (b *Batch) element(a *attrs, s *Set, key string, data map[string]string) {
	if s.Ranges {
		bounds(a, key, s.keyLen())
		return
	}
	a.nest(unix.NFTA_LIST_ELEM, func(a *attrs) {
		a.nest(unix.NFTA_SET_ELEM_KEY, func(a *attrs) { a.put(unix.NFTA_DATA_VALUE, []byte(key)) })
		if data == nil || !s.IsMap() {
			return
		}
		a.nest(unix.NFTA_SET_ELEM_DATA, func(a *attrs) {
			if !s.Verdicts {
				a.put(unix.NFTA_DATA_VALUE, []byte(data[key]))
				return
			}
			a.nest(unix.NFTA_DATA_VERDICT, func(a *attrs) {
				code, chain, err := parseVerdict(data[key])
				if err != nil {
					b.err = err
				}
				a.u32(unix.NFTA_VERDICT_CODE, uint32(code))
				if chain != "" {
					a.text(unix.NFTA_VERDICT_CHAIN, chain)
				}
			})
		})
	})
}

// bounds writes a range as the kernel has it: its first value, and the one after its last, where there is one. Values are n bytes.
func bounds(a *attrs, key string, n int) {
	value := func(v []byte, flags uint32) {
		a.nest(unix.NFTA_LIST_ELEM, func(a *attrs) {
			a.nest(unix.NFTA_SET_ELEM_KEY, func(a *attrs) { a.put(unix.NFTA_DATA_VALUE, v) })
			if flags != 0 {
				a.u32(unix.NFTA_SET_ELEM_FLAGS, flags)
			}
		})
	}
	value([]byte(key[:n]), 0)
	if end := []byte(key[len(key)/2:][:n]); step(end, 0xff) {
		value(end, unix.NFT_SET_ELEM_INTERVAL_END)
	}
}

// step makes a big-endian number the next one, or with turn 0 the one before. Turn is the digit after which it goes round; it reports false
// where the whole number does.
func step(n []byte, turn byte) bool {
	by := byte(1)
	if turn == 0 {
		by = 0xff
	}
	for i := len(n) - 1; i >= 0; i-- {
		at := n[i]
		if n[i] += by; at != turn {
			return true
		}
	}
	return false
}

// Verdict codes of linux/netfilter.h and nf_tables.h.
const (
	codeDrop   = int32(0)
	codeAccept = int32(1)
	codeGoto   = int32(unix.NFT_GOTO)
	codeJump   = int32(unix.NFT_JUMP)
)

func parseVerdict(text string) (code int32, chain string, err error) {
	switch verb, chain, _ := strings.Cut(text, " "); {
	case text == "drop":
		return codeDrop, "", nil
	case text == "accept":
		return codeAccept, "", nil
	case verb == "goto" && chain != "":
		return codeGoto, chain, nil
	case verb == "jump" && chain != "":
		return codeJump, chain, nil
	}
	return 0, "", fmt.Errorf("encode verdict %q: unknown", text)
}

func verdictText(code int32, chain string) string {
	switch code {
	case codeDrop:
		return "drop"
	case codeAccept:
		return "accept"
	case codeGoto:
		return "goto " + chain
	case codeJump:
		return "jump " + chain
	}
	return fmt.Sprintf("verdict %d", code)
}
