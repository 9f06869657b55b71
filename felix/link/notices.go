package link

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/causeway-net/causeway/felix/route"
	"github.com/causeway-net/causeway/internal/nodeaddr"
)

// resubscribe is the wait before a subscription that the kernel ended is made anew: it does
// so when more happens than was read.
const resubscribe = time.Second

// listen pokes the loop when links and addresses change, and with routes when those do, until
// ctx is cancelled. Its goroutines are part of running.
func (u *Uplinks) listen(ctx context.Context, running *sync.WaitGroup, routes bool) error {
	err := follow(ctx, running, u, "links",
		func(ch chan netlink.LinkUpdate, stop chan struct{}, lost func(error)) error {
			return netlink.LinkSubscribeWithOptions(ch, stop, netlink.LinkSubscribeOptions{ErrorCallback: lost})
		},
		func(l netlink.LinkUpdate) bool { return !nodeaddr.Ours(l.Attrs().Name) }) // pods come and go
	if err != nil {
		return err
	}
	err = follow(ctx, running, u, "addresses",
		func(ch chan netlink.AddrUpdate, stop chan struct{}, lost func(error)) error {
			return netlink.AddrSubscribeWithOptions(ch, stop, netlink.AddrSubscribeOptions{ErrorCallback: lost})
		},
		func(netlink.AddrUpdate) bool { return true })
	if err != nil || !routes {
		return err
	}
	return follow(ctx, running, u, "routes",
		func(ch chan netlink.RouteUpdate, stop chan struct{}, lost func(error)) error {
			return netlink.RouteSubscribeWithOptions(ch, stop, netlink.RouteSubscribeOptions{ErrorCallback: lost})
		},
		func(r netlink.RouteUpdate) bool { return int(r.Protocol) != route.DefaultProtocol }) // those to pods lead nowhere else
}

// follow subscribes, and pokes the loop for each message that matters. An error is of the
// first attempt only; later ones are logged and tried again.
func follow[T any](ctx context.Context, running *sync.WaitGroup, u *Uplinks, what string,
	subscribe func(ch chan T, stop chan struct{}, lost func(error)) error, matters func(T) bool) error {
	open := func() (ch chan T, stop chan struct{}, err error) {
		ch, stop = make(chan T, 64), make(chan struct{})
		err = subscribe(ch, stop, func(err error) {
			if ctx.Err() == nil { // closing a subscription is an error to its reader
				u.log.Warn("netlink subscription", "to", what, "error", err)
				u.loop.PokeResync()
			}
		})
		return ch, stop, err
	}
	ch, stop, err := open()
	if err != nil {
		return fmt.Errorf("subscribe to %s: %w", what, err)
	}
	running.Go(func() {
		for {
			stop := stop
			end := context.AfterFunc(ctx, func() { close(stop) })
			for m := range ch { // ends when the subscription does
				if matters(m) {
					u.loop.Poke()
				}
			}
			if end() {
				close(stop) // its socket is left otherwise
			}
			for {
				select {
				case <-ctx.Done():
					return
				case <-time.After(resubscribe):
				}
				if ch, stop, err = open(); err == nil {
					break
				}
				u.log.Warn("netlink subscription", "to", what, "error", err)
			}
			u.loop.PokeResync() // something may have changed in between
		}
	})
	return nil
}
