// Command causewayctl shows what the agent of this node sees and does.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/causeway-net/causeway/internal/status"
)

var version = "dev" // set by the linker

func main() {
	var socket string
	var asJSON bool
	root := &cobra.Command{
		Use: "causewayctl", Short: "See what the agent of this node sees and does",
		Version: version, SilenceUsage: true, SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&socket, "socket", "/run/causeway/agent.sock", "the agent's socket")
	root.PersistentFlags().BoolVar(&asJSON, "json", false, "print all that the agent says as JSON")
	for _, v := range views {
		root.AddCommand(&cobra.Command{
			Use: v.name, Short: v.short, Args: cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
				defer cancel()
				st, err := status.Fetch(ctx, socket)
				if err != nil {
					return err
				}
				return show(cmd.OutOrStdout(), asJSON, st, func(w io.Writer) { v.print(w, st) })
			},
		})
	}
	root.AddCommand(policyCommands(&socket, &asJSON)...)
	if err := root.ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "causewayctl:", err)
		os.Exit(1)
	}
}

// show prints what as JSON, or as a table that print writes.
func show(to io.Writer, asJSON bool, what any, print func(io.Writer)) error {
	if asJSON {
		enc := json.NewEncoder(to)
		enc.SetIndent("", "  ")
		return enc.Encode(what)
	}
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	print(w)
	return w.Flush()
}

// views are the subcommands: each prints one part of the status.
var views = []struct {
	name, short string
	print       func(io.Writer, status.Status)
}{
	{"status", "The node in short, and everything that is wrong", printStatus},
	{"peers", "BGP sessions", printPeers},
	{"addresses", "Blocks and the pods' addresses", printAddresses},
	{"problems", "Objects and fields of the datastore that are not in force", printProblems},
}

func printStatus(w io.Writer, st status.Status) {
	ready := "yes"
	if !st.Ready {
		ready = "no: " + st.NotReady
	}
	for _, s := range st.Warnings {
		ready += "\nWarning\t" + s
	}
	established := 0
	for _, p := range st.Peers {
		if p.State == "Established" {
			established++
		}
	}
	fmt.Fprintf(w, "Node\t%s\nVersion\t%s\nUp for\t%s\nReady\t%s\n", st.Node, st.Version, time.Since(st.Started).Round(time.Second), ready)
	datastore := st.Source.Datastore
	if st.Source.Error != "" {
		datastore += ", which does not answer: " + st.Source.Error
	}
	fmt.Fprintf(w, "Datastore\t%s\n", datastore)
	if n := st.Network; n != nil {
		printNetwork(w, *n)
	}
	fmt.Fprintf(w, "Peers\t%d of %d established\n", established, len(st.Peers))
	fmt.Fprintf(w, "Speaker\tpid %d, %d restarts\n", st.Speaker.PID, st.Speaker.Restarts)
	if st.Speaker.Error != "" {
		fmt.Fprintf(w, "\t%s\n", st.Speaker.Error)
	}
	fmt.Fprintf(w, "Pods\t%d, MTU %d\nBlocks\t%d\nRoutes\t%s\n", len(st.Endpoints), st.MTU, len(st.Blocks), routeCounts(st.Routes.ByOwner))
	printTunnels(w, st.Encapsulation)
	printPolicyState(w, st.Policy)
	for _, l := range []struct {
		what  string
		lines []string
	}{{"Route conflict", st.Routes.Conflicts}, {"Route left out", st.Routes.LeftOut}, {"Next hop unresolved", st.Routes.Unresolved}, {"Route error", st.Routes.Errors}} {
		for _, s := range l.lines {
			fmt.Fprintf(w, "%s\t%s\n", l.what, s)
		}
	}
	for _, p := range st.Peers {
		if p.HeldBack != nil {
			fmt.Fprintf(w, "Peer held back\t%s until %s: %s\n", p.Address, p.HeldBack.Until.Format(time.RFC3339), p.HeldBack.Reason)
		}
	}
	printProblems(w, st)
}

// printTunnels prints a line for each encapsulation device and what is wrong with it.
func printTunnels(w io.Writer, e status.Encapsulation) {
	for _, t := range e.Tunnels {
		state := "down"
		switch {
		case t.Held:
			state = "cannot be made; what would go through it stays as it was"
		case t.Up && !t.Wanted:
			state = "up, not wanted any more"
		case t.Up:
			state = "up"
		}
		fmt.Fprintf(w, "Tunnel\t%s %s", t.Device, state)
		if t.Address.IsValid() {
			fmt.Fprintf(w, ", %s", t.Address)
		}
		if t.MTU != 0 {
			fmt.Fprintf(w, ", MTU %d", t.MTU)
		}
		if t.PeersWanted != 0 {
			fmt.Fprintf(w, ", %d of %d nodes", t.Peers, t.PeersWanted)
		}
		fmt.Fprintln(w)
		for _, s := range t.Errors {
			fmt.Fprintf(w, "\t%s\n", s)
		}
	}
	if e.Waiting != "" {
		fmt.Fprintf(w, "\tthe change goes on after: %s\n", e.Waiting)
	}
}

// printNetwork prints what Kubernetes is told of the node.
func printNetwork(w io.Writer, n status.Network) {
	var addrs []string
	for _, a := range n.Addresses {
		addrs = append(addrs, a.String())
	}
	fmt.Fprintf(w, "Addresses\t%s\nNetworkUnavailable\t%s\n", strings.Join(addrs, ", "), n.Condition)
	if n.Unavailable != "" {
		fmt.Fprintf(w, "\t%s\n", n.Unavailable)
	}
	if n.AddressChanges > 0 {
		fmt.Fprintf(w, "\tthe address changed %d times since the agent started\n", n.AddressChanges)
	}
	if n.EventsDropped > 0 {
		fmt.Fprintf(w, "Events\t%d not sent, to spare the API server\n", n.EventsDropped)
	}
	if n.Error != "" {
		fmt.Fprintf(w, "Node error\t%s\n", n.Error)
	}
}

func routeCounts(by map[string]int) string {
	var parts []string
	for _, owner := range []string{"workload", "block", "tunnel", "bgp"} {
		if n, ok := by[owner]; ok {
			parts = append(parts, fmt.Sprintf("%d %s", n, owner))
		}
	}
	return strings.Join(parts, ", ")
}

func printPeers(w io.Writer, st status.Status) {
	fmt.Fprintln(w, "PEER\tASN\tFROM\tSTATE\tSINCE\tRECEIVED\tACCEPTED\tADVERTISED\tNOTE")
	for _, p := range st.Peers {
		since, note := "-", p.Error
		if !p.Since.IsZero() {
			since = time.Since(p.Since).Round(time.Second).String()
		}
		if p.HeldBack != nil {
			note = "held back until " + p.HeldBack.Until.Format(time.RFC3339) + ": " + p.HeldBack.Reason
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%d\t%d\t%d\t%s\n", p.Address, p.ASN, p.Resource, p.State, since, p.Received, p.Accepted, p.Advertised, note)
	}
}

func printAddresses(w io.Writer, st status.Status) {
	for _, b := range st.Blocks {
		fmt.Fprintf(w, "block %s\n", b)
	}
	fmt.Fprintln(w, "ADDRESSES\tPOD\tLINK\tCONTAINER")
	for _, ep := range st.Endpoints {
		var addrs []string
		for _, a := range ep.Addresses {
			addrs = append(addrs, a.String())
		}
		pod := ep.Pod
		if ep.Namespace != "" {
			pod = ep.Namespace + "/" + ep.Pod
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", strings.Join(addrs, ","), pod, ep.HostInterface, ep.Key)
	}
}

func printProblems(w io.Writer, st status.Status) {
	for _, p := range st.Problems {
		kind := "Not in force"
		if p.Ignored {
			kind = "Not acted on"
		}
		fmt.Fprintf(w, "%s\t%s\n", kind, p)
	}
}
