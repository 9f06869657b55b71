package iptables_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/causeway-net/causeway/felix/iptables"
)

// manyRules is a table of chains of ten rules.
func manyRules(rules int) iptables.TableState {
	s := iptables.TableState{Hooks: []iptables.Hook{hook("FORWARD", "-j cali-FORWARD")}}
	top := iptables.Chain{Name: "cali-FORWARD"}
	for i := range rules / 10 {
		s.Chains = append(s.Chains, policyChain(i, 0))
		if i < 10 {
			top.Rules = append(top.Rules, rule("-j "+s.Chains[i].Name))
		}
	}
	s.Chains = append(s.Chains, top)
	return s
}

func policyChain(i, version int) iptables.Chain {
	c := iptables.Chain{Name: fmt.Sprintf("cali-pi-%d", i)}
	for j := range 9 {
		c.Rules = append(c.Rules, rule(fmt.Sprintf("-s 10.%d.%d.0/24 -p tcp -m tcp --dport %d -m comment --comment policy-%d -j ACCEPT", i/256, i%256, 1000+j, i)))
	}
	c.Rules = append(c.Rules, rule(fmt.Sprintf("-m mark --mark %#x/0xff -j RETURN", 1+version%200)))
	return c
}

// BenchmarkReconciler measures, from Set or Update to Wait: the first installation, a
// restart that finds all right, one changed chain of many, and the two tables of a start.
func BenchmarkReconciler(b *testing.B) {
	for _, backend := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		b.Run(string(backend), func(b *testing.B) {
			b.Run("start-reverse-path", func(b *testing.B) {
				r := realRig(b, iptables.IPv4, backend)
				for b.Loop() {
					rec, stop := r.start(b)
					rec.Set(iptables.Raw, iptables.ReversePath("cali"))
					rec.Set(iptables.Filter, sample())
					wait(b, rec)
					b.StopTimer()
					stop()
					if err := iptables.Remove(context.Background(), iptables.Config{Family: r.family, Kernel: r.kernel}); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			})
			for _, n := range []int{1000, 10000} {
				s := manyRules(n)
				b.Run(fmt.Sprintf("install-%d", n), func(b *testing.B) {
					r := realRig(b, iptables.IPv4, backend)
					for b.Loop() {
						rec, stop := r.start(b)
						rec.Set(iptables.Filter, s)
						wait(b, rec)
						b.StopTimer()
						stop()
						if err := iptables.Remove(context.Background(), iptables.Config{Family: r.family, Kernel: r.kernel}); err != nil {
							b.Fatal(err)
						}
						b.StartTimer()
					}
				})
				b.Run(fmt.Sprintf("restart-%d", n), func(b *testing.B) {
					r := realRig(b, iptables.IPv4, backend)
					rec, stop := r.start(b)
					rec.Set(iptables.Filter, s)
					wait(b, rec)
					stop()
					for b.Loop() {
						rec, stop := r.start(b)
						rec.Set(iptables.Filter, s)
						wait(b, rec)
						b.StopTimer()
						stop()
						b.StartTimer()
					}
				})
				b.Run(fmt.Sprintf("one-chain-of-%d", n), func(b *testing.B) {
					r := realRig(b, iptables.IPv4, backend)
					r.backend = iptables.NFT // no resync beside it
					rec, _ := r.start(b)
					rec.Set(iptables.Filter, s)
					wait(b, rec)
					version := 0
					for b.Loop() {
						version++
						rec.Update(iptables.Filter, []iptables.Chain{policyChain(5, version)}, nil)
						wait(b, rec)
					}
				})
			}
		})
	}
}
