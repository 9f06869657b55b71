package server

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/causeway-net/causeway/cni-plugin/internal/sandbox"
)

// BenchmarkADD compares one ADD through libcni (the plugin's execution included) with
// ptp + host-local, in turns. It reports the medians. Ours is dual stack; theirs is IPv4
// only, since with IPv6 ptp waits for more than a second for duplicate address detection.
func BenchmarkADD(b *testing.B) {
	r := newRig(b)
	r.start()
	ours := r.list("1.0.0", "")
	theirs, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"base","plugins":[{"type":"ptp","ipam":{"type":"host-local","dataDir":%q,
		"ranges":[[{"subnet":"10.77.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`, filepath.Dir(r.socket)))
	if err != nil {
		b.Fatal(err)
	}
	rt := runtime("bench", sandbox.Pod(b))
	took := map[string][]time.Duration{}
	turn := func(name string, l *libcni.NetworkConfigList) {
		start := time.Now()
		if _, err := r.cni.AddNetworkList(context.Background(), l, rt); err != nil {
			b.Fatal(err)
		}
		took[name+"-add"] = append(took[name+"-add"], time.Since(start))
		start = time.Now()
		if err := r.cni.DelNetworkList(context.Background(), l, rt); err != nil {
			b.Fatal(err)
		}
		took[name+"-del"] = append(took[name+"-del"], time.Since(start))
	}
	for b.Loop() {
		turn("causeway", ours)
		turn("ptp", theirs)
	}
	for name, list := range took {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, name+"-ms")
	}
}

// BenchmarkParallelADD is the time for 50 ADDs at once.
func BenchmarkParallelADD(b *testing.B) {
	r := newRig(b)
	r.start()
	l := r.list("1.0.0", "")
	var pods []*libcni.RuntimeConf
	for i := range 50 {
		pods = append(pods, runtime(fmt.Sprintf("c%d", i), sandbox.Pod(b)))
	}
	each := func(f func(*libcni.RuntimeConf) error) {
		var wg sync.WaitGroup
		for _, rt := range pods {
			wg.Go(func() {
				if err := f(rt); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	for b.Loop() {
		each(func(rt *libcni.RuntimeConf) error {
			_, err := r.cni.AddNetworkList(context.Background(), l, rt)
			return err
		})
		b.StopTimer()
		each(func(rt *libcni.RuntimeConf) error { return r.cni.DelNetworkList(context.Background(), l, rt) })
		b.StartTimer()
	}
}

// BenchmarkRequest is an ADD without the plugin's execution: what the agent takes, with
// addresses from memory and routes by netlink.
func BenchmarkRequest(b *testing.B) {
	r := newRig(b)
	r.start()
	ns := sandbox.Pod(b)
	ask := func(command string) {
		if resp, err := r.raw(r.request(command, "bench"), ns); err != nil || resp.Error != nil {
			b.Fatal(err, resp.Error)
		}
	}
	for b.Loop() {
		ask("ADD")
		b.StopTimer()
		ask("DEL")
		b.StartTimer()
	}
}
