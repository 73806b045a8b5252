package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// errTorn says that the table changed while it was being read.
var errTorn = errors.New("table changed while it was read")

// Read returns the table of that name as the kernel has it, nil if there is none.
// Rules are known by their digest only.
func (c *Conn) Read(name string) (*Table, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range 10 {
		t, err := c.read(name)
		if err == nil || !errors.Is(err, errTorn) {
			return t, err
		}
	}
	return nil, fmt.Errorf("read nftables table %s: %w", name, errTorn)
}

func (c *Conn) read(name string) (*Table, error) {
	t := NewTable(name)
	exists := false
	err := c.dump(unix.NFT_MSG_GETTABLE, "tables", nil, func(as []attr) error {
		exists = exists || cstring(find(as, unix.NFTA_TABLE_NAME)) == name
		return nil
	})
	if err != nil || !exists {
		return nil, err
	}
	inTable := func(a *attrs) { a.text(1, name) } // NFTA_{CHAIN,RULE,SET,SET_ELEM_LIST}_TABLE are all 1
	err = c.dump(unix.NFT_MSG_GETCHAIN, "chains", inTable, func(as []attr) error {
		if cstring(find(as, unix.NFTA_CHAIN_TABLE)) == name {
			t.Chains[cstring(find(as, unix.NFTA_CHAIN_NAME))] = parseChain(as)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = c.dump(unix.NFT_MSG_GETRULE, "rules", inTable, func(as []attr) error {
		chain := t.Chains[cstring(find(as, unix.NFTA_RULE_CHAIN))]
		if chain == nil || cstring(find(as, unix.NFTA_RULE_TABLE)) != name {
			return nil
		}
		chain.Rules = append(chain.Rules, Rule{{Text: readRule + digestOf(find(as, unix.NFTA_RULE_USERDATA))}})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return t, c.readSets(t)
}

func (c *Conn) readSets(t *Table) error {
	err := c.dump(unix.NFT_MSG_GETSET, "sets", func(a *attrs) { a.text(unix.NFTA_SET_TABLE, t.Name) }, func(as []attr) error {
		if cstring(find(as, unix.NFTA_SET_TABLE)) == t.Name {
			t.Sets[cstring(find(as, unix.NFTA_SET_NAME))] = parseSet(as)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for name, s := range t.Sets {
		if s.Dynamic {
			continue
		}
		ask := func(a *attrs) {
			a.text(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
			a.text(unix.NFTA_SET_ELEM_LIST_SET, name)
		}
		var firsts, ends []string // of ranges
		err := c.dump(unix.NFT_MSG_GETSETELEM, "elements", ask, func(as []attr) error {
			for _, e := range parseAttrs(find(as, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
				as := parseAttrs(e.data)
				switch {
				case !s.Ranges:
					s.parseElement(as)
				case find32(as, unix.NFTA_SET_ELEM_FLAGS)&unix.NFT_SET_ELEM_INTERVAL_END != 0:
					ends = append(ends, elementKey(as))
				default:
					firsts = append(firsts, elementKey(as))
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		s.pair(firsts, ends)
	}
	return nil
}

// dump asks for a list and calls f for each message of the answer.
func (c *Conn) dump(typ uint16, what string, ask func(*attrs), f func([]attr) error) error {
	c.seq++
	msg := appendHeader(nil, unix.NFNL_SUBSYS_NFTABLES<<8|typ, unix.NLM_F_DUMP, c.seq, unix.NFPROTO_INET, 0)
	if ask != nil {
		a := attrs(msg)
		ask(&a)
		msg = a
	}
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	if err := unix.Sendto(c.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("list nftables %s: %w", what, err)
	}
	torn := false
	for {
		msgs, err := c.receive(0)
		if err != nil {
			return fmt.Errorf("list nftables %s: %w", what, err)
		}
		for _, m := range msgs {
			if m.Header.Seq != c.seq {
				continue
			}
			torn = torn || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
			switch m.Header.Type {
			case unix.NLMSG_DONE:
				if torn {
					return errTorn
				}
				return nil
			case unix.NLMSG_ERROR:
				if err := ackError(m.Data); errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
					return errTorn
				} else if err != nil {
					return fmt.Errorf("list nftables %s: %w", what, err)
				}
			default:
				if err := f(parseAttrs(m.Data[min(4, len(m.Data)):])); err != nil {
					return err
				}
			}
		}
	}
}

func find(as []attr, typ uint16) []byte {
	for _, a := range as {
		if a.typ == typ {
			return a.data
		}
	}
	return nil
}

func find32(as []attr, typ uint16) uint32 {
	if b := find(as, typ); len(b) == 4 {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func parseChain(as []attr) *Chain {
	hook := find(as, unix.NFTA_CHAIN_HOOK)
	if hook == nil {
		return &Chain{}
	}
	in := parseAttrs(hook)
	return &Chain{Hook: &Hook{Type: cstring(find(as, unix.NFTA_CHAIN_TYPE)),
		Point: Point(find32(in, unix.NFTA_HOOK_HOOKNUM)), Priority: int32(find32(in, unix.NFTA_HOOK_PRIORITY))}}
}

func parseSet(as []attr) *Set {
	flags := find32(as, unix.NFTA_SET_FLAGS)
	s := &Set{Key: typesOf(find32(as, unix.NFTA_SET_KEY_TYPE)), Dynamic: flags&setFlagEval != 0,
		Ranges: flags&unix.NFT_SET_INTERVAL != 0, Elems: map[string]string{}}
	if flags&unix.NFT_SET_MAP != 0 {
		if typ := find32(as, unix.NFTA_SET_DATA_TYPE); typ == 0xffffff00 {
			s.Verdicts = true
		} else {
			s.Data = typesOf(typ)
		}
	}
	if b := find(as, unix.NFTA_SET_TIMEOUT); len(b) == 8 {
		s.Timeout = time.Duration(binary.BigEndian.Uint64(b)) * time.Millisecond
	}
	s.Size = find32(parseAttrs(find(as, unix.NFTA_SET_DESC)), unix.NFTA_SET_DESC_SIZE)
	return s
}

// typesOf is the reverse of typeID. A type that is not ours becomes one without a
// size, which equals none of ours.
func typesOf(id uint32) []Type {
	var ts []Type
	for ; id != 0; id >>= 6 {
		t := Type{Name: "unknown", id: id & 0x3f}
		for _, known := range []Type{IPv4, IPv6, Proto, Service, Number} {
			if known.id == t.id {
				t = known
			}
		}
		ts = append([]Type{t}, ts...)
	}
	return ts
}

// pair makes ranges of their first values and of those after their last ones. A range without an end goes on to the last value.
func (s *Set) pair(firsts, ends []string) {
	slices.Sort(firsts)
	slices.Sort(ends)
	padding := strings.Repeat("\x00", Width(s.Key)-s.keyLen())
	for _, first := range firsts {
		i, exact := slices.BinarySearch(ends, first)
		if exact {
			i++
		}
		last := []byte(strings.Repeat("\xff", len(first)))
		if i < len(ends) {
			last = []byte(ends[i])
			step(last, 0)
		}
		s.Elems[first+padding+string(last)+padding] = ""
	}
}

func elementKey(as []attr) string {
	return string(find(parseAttrs(find(as, unix.NFTA_SET_ELEM_KEY)), unix.NFTA_DATA_VALUE))
}

func (s *Set) parseElement(as []attr) {
	key := elementKey(as)
	data := parseAttrs(find(as, unix.NFTA_SET_ELEM_DATA))
	if !s.Verdicts {
		s.Elems[key] = string(find(data, unix.NFTA_DATA_VALUE))
		return
	}
	v := parseAttrs(find(data, unix.NFTA_DATA_VERDICT))
	s.Elems[key] = verdictText(int32(find32(v, unix.NFTA_VERDICT_CODE)), cstring(find(v, unix.NFTA_VERDICT_CHAIN)))
}
