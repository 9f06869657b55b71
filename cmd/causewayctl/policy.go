package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/causeway-net/causeway/internal/model"
	"github.com/causeway-net/causeway/internal/status"
)

// policyCommands are those that show what policy does.
func policyCommands(socket *string, asJSON *bool) []*cobra.Command {
	bounded := func(cmd *cobra.Command) (context.Context, context.CancelFunc) {
		return context.WithTimeout(cmd.Context(), 10*time.Second)
	}
	var all bool
	policies := &cobra.Command{
		Use: "policy [[NAMESPACE/]NAME]", Short: "Policies in force for pods of this node, and what they let pass; with a name, rule by rule", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := bounded(cmd)
			defer cancel()
			d, err := status.FetchPolicy(ctx, *socket)
			if err != nil {
				return err
			}
			st, err := status.Fetch(ctx, *socket)
			if err != nil {
				return err
			}
			of := policyProblems(st.Problems)
			if len(args) == 1 {
				d.Policies = slices.DeleteFunc(d.Policies, func(p status.PolicyInForce) bool { return !called(args[0], p.ID.Namespace, p.ID.Name) })
				of = slices.DeleteFunc(of, func(p model.Problem) bool { return !called(args[0], p.Object.Namespace, p.Object.Name) })
				if len(d.Policies)+len(of) == 0 {
					return fmt.Errorf("no policy is called %s", args[0])
				}
				return show(cmd.OutOrStdout(), *asJSON, d.Policies, func(w io.Writer) { printRules(w, d, of) })
			}
			return show(cmd.OutOrStdout(), *asJSON, d, func(w io.Writer) { printPolicies(w, d, all, of) })
		},
	}
	policies.Flags().BoolVar(&all, "all", false, "also policies that hold for no pod of this node")
	endpoint := &cobra.Command{
		Use: "endpoint [NAMESPACE/POD|INTERFACE]", Short: "Which policies hold for the pods of this node; for one, in the order in which they are asked", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := bounded(cmd)
			defer cancel()
			d, err := status.FetchPolicy(ctx, *socket)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return show(cmd.OutOrStdout(), *asJSON, d.Endpoints, func(w io.Writer) { printEndpoints(w, d.Endpoints) })
			}
			i := slices.IndexFunc(d.Endpoints, func(ep status.PolicyEndpoint) bool {
				return args[0] == ep.Interface || called(args[0], ep.Namespace, ep.Name)
			})
			if i < 0 {
				return fmt.Errorf("no pod or host endpoint of this node is called %s; causewayctl endpoint lists them", args[0])
			}
			return show(cmd.OutOrStdout(), *asJSON, d.Endpoints[i], func(w io.Writer) { printEndpoint(w, d.Endpoints[i]) })
		},
	}
	question := url.Values{}
	trace := &cobra.Command{
		Use: "trace --from NAMESPACE/POD|ADDRESS --to NAMESPACE/POD|ADDRESS [--protocol tcp] [--port 80]", Short: "What this node's rules do with a new connection, and which of them decides", Args: cobra.NoArgs,
		Long: "What this node's rules do with the first packet of a connection, and which of them decides.\n\n" +
			"They are asked as they stand in the kernel; no packet is sent. An end that is on another node\n" +
			"has rules of its own there: ask the agent of that node, too. For a Service name one of its pods,\n" +
			"and the pod's port: policy sees addresses of Services already translated.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := bounded(cmd)
			defer cancel()
			for _, name := range []string{"from", "to", "protocol", "port", "source-port", "icmp-type", "icmp-code"} {
				if f := cmd.Flags().Lookup(name); f.Changed {
					question.Set(name, f.Value.String())
				}
			}
			answers, err := status.Trace(ctx, *socket, question)
			if err != nil {
				return err
			}
			return show(cmd.OutOrStdout(), *asJSON, answers, func(w io.Writer) { printTrace(w, answers) })
		},
	}
	f := trace.Flags()
	f.String("from", "", "who opens the connection: NAMESPACE/POD, or an address")
	f.String("to", "", "to whom: NAMESPACE/POD, or an address")
	f.String("protocol", "tcp", "tcp, udp, sctp, udplite, icmp, icmpv6 or a number")
	f.Uint16("port", 0, "destination port")
	f.Uint16("source-port", 49152, "source port")
	f.Uint8("icmp-type", 8, "type of the message (of ICMPv6: 128)")
	f.Uint8("icmp-code", 0, "code of the message")
	return []*cobra.Command{policies, endpoint, trace}
}

// called reports whether text names an object, with its namespace or without.
func called(text, namespace, name string) bool {
	return text == name || namespace != "" && text == namespace+"/"+name
}

// policyProblems are those of policies and tiers.
func policyProblems(ps []model.Problem) (out []model.Problem) {
	for _, p := range ps {
		if strings.HasSuffix(p.Object.Kind, "NetworkPolicy") || p.Object.Kind == "Tier" {
			out = append(out, p)
		}
	}
	return out
}

// printPolicyState prints what enforces policy, and what keeps it from it.
func printPolicyState(w io.Writer, p status.Policy) {
	by := p.Backend
	switch {
	case by == "":
		by = "waits for the datastore to say by what it is enforced"
	case !p.Synced:
		by += ", still with the rules of the agent before"
	}
	fmt.Fprintf(w, "Policy\t%s, %d policies for %d endpoints, %d sets with %d members\n", by, p.Policies, p.Endpoints, p.Sets, p.Members)
	if p.Changes > 0 {
		fmt.Fprintf(w, "\t%d changes, the last in %s\n", p.Changes, seconds(p.LastChange))
	}
	if c := p.Connections; c.Cut > 0 || c.Failures > 0 {
		fmt.Fprintf(w, "\t%d connections cut, %d allowed again, %d held; %d of %d rounds failed\n", c.Cut, c.Restored, c.Held, c.Failures, c.Rounds)
	}
	if a := p.Announcements; a != nil {
		fmt.Fprintf(w, "Announcements\tto %d nodes, key %s; %d pods told, %d heard of\n", a.Peers, a.Key, a.Announced, a.Delivered)
	}
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(10 * time.Microsecond).String()
}

func printPolicies(w io.Writer, d status.PolicyDetail, all bool, of []model.Problem) {
	fmt.Fprintln(w, "TIER\tORDER\tPOLICY\tENDPOINTS\tHOLDS FOR\tALLOWED\tDENIED\tPASSED\tNOTE")
	idle := 0
	for _, p := range d.Policies {
		if p.Endpoints == 0 && !all {
			idle++
			continue
		}
		sum := map[string]uint64{}
		for _, r := range p.Rules {
			sum[r.Action] += r.Packets
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%d\t%d\t%d\t%s\n", p.Tier, orderText(p.Order), p.ID, p.Endpoints, directions(p), sum["allow"], sum["deny"], sum["pass"], notes(p))
	}
	if idle > 0 {
		fmt.Fprintf(w, "and %d policies that hold for nobody here (--all)\n", idle)
	}
	printCountersError(w, d)
	printProblems(w, status.Status{Problems: of})
}

func printCountersError(w io.Writer, d status.PolicyDetail) {
	if d.CountersError != "" {
		fmt.Fprintf(w, "Packets were not counted: %s\n", d.CountersError)
	}
}

func orderText(o *float64) string {
	if o == nil {
		return "last"
	}
	return strconv.FormatFloat(*o, 'f', -1, 64)
}

func directions(p status.PolicyInForce) string {
	switch {
	case p.Ingress && p.Egress:
		return "ingress, egress"
	case p.Egress:
		return "egress"
	}
	return "ingress"
}

func notes(p status.PolicyInForce) string {
	var out []string
	for _, n := range []struct {
		is   bool
		text string
	}{{p.Staged, "staged: counted, not enforced"}, {p.Untracked, "doNotTrack"}, {p.PreDNAT, "preDNAT"}} {
		if n.is {
			out = append(out, n.text)
		}
	}
	return strings.Join(out, ", ")
}

func printRules(w io.Writer, d status.PolicyDetail, of []model.Problem) {
	for _, p := range d.Policies {
		fmt.Fprintf(w, "%s: tier %s, order %s, holds for %s; endpoints here: %d\n", p.ID, p.Tier, orderText(p.Order), directions(p), p.Endpoints)
		if n := notes(p); n != "" {
			fmt.Fprintf(w, "%s\n", n)
		}
		fmt.Fprintln(w, "DIRECTION\tRULE\tACTION\tPACKETS\tBYTES")
		for _, r := range p.Rules {
			action := r.Action
			if p.Staged {
				action = "would " + action
			}
			fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%d\n", r.Direction, r.Index, action, r.Packets, r.Bytes)
		}
	}
	printCountersError(w, d)
	printProblems(w, status.Status{Problems: of})
}

func endpointName(ep status.PolicyEndpoint) string {
	if ep.Namespace != "" {
		return ep.Namespace + "/" + ep.Name
	}
	return ep.Name
}

func addressList(ep status.PolicyEndpoint) string {
	var out []string
	for _, a := range ep.Addresses {
		out = append(out, a.String())
	}
	return strings.Join(out, ",")
}

func printEndpoints(w io.Writer, eps []status.PolicyEndpoint) {
	fmt.Fprintln(w, "ENDPOINT\tINTERFACE\tADDRESSES\tINGRESS\tEGRESS")
	for _, ep := range eps {
		n := map[string]string{}
		for _, p := range ep.Paths {
			n[p.Place] = pathText(p)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", endpointName(ep), ep.Interface, addressList(ep), n["ingress"], n["egress"])
	}
}

// pathText is a path in short: what nothing decides on, or by how many policies it is guarded.
func pathText(p status.PolicyPath) string {
	n := 0
	for _, t := range p.Tiers {
		n += len(t.Policies)
	}
	switch n {
	case 0:
		return p.Default
	case 1:
		return "1 policy"
	}
	return fmt.Sprintf("%d policies", n)
}

func printEndpoint(w io.Writer, ep status.PolicyEndpoint) {
	fmt.Fprintf(w, "%s %s\t%s\t%s\n", ep.Kind, endpointName(ep), ep.Interface, addressList(ep))
	for _, p := range ep.Paths {
		fmt.Fprintf(w, "%s\n", p.Place)
		ends := false
		for _, t := range p.Tiers {
			for _, id := range t.Policies {
				fmt.Fprintf(w, "  tier %s\t%s\n", t.Name, id)
			}
			end := "the next tier"
			if t.End == "deny" {
				end, ends = "deny", true
			}
			fmt.Fprintf(w, "  \tnone of them: %s\n", end)
		}
		if !ends {
			fmt.Fprintf(w, "  no tier decides\t%s\n", p.Default)
		}
	}
}

func printTrace(w io.Writer, answers []status.Answer) {
	for _, a := range answers {
		verdict := "denied"
		if a.Allowed {
			verdict = "allowed"
		}
		if a.Untracked {
			verdict += ", untracked"
		}
		fmt.Fprintf(w, "%s: %s\n", a.Packet, verdict)
		for _, s := range a.Stages {
			who := s.Interface
			if s.Endpoint != "" {
				who = s.Endpoint + ", " + s.Interface
			}
			fmt.Fprintf(w, "  %s (%s): %s\n", s.Place, who, why(s))
			for i, h := range s.Hits {
				fmt.Fprintf(w, "    tier %s: %s %s rule %d: %s\n", h.Tier, h.Policy, h.Direction, h.Index, hitText(h, s.Reason == "rule" && i == len(s.Hits)-1))
			}
		}
		for _, addr := range a.Elsewhere {
			fmt.Fprintf(w, "  %s is not on this node: what the rules of its own node say, if it is a pod, the agent there knows\n", addr)
		}
	}
}

func hitText(h status.Hit, decides bool) string {
	switch {
	case h.Staged:
		return "would " + h.Action + " (staged)"
	case decides:
		return h.Action + ", which decides"
	}
	return h.Action
}

// why says what decided at a stage, in words.
func why(s status.Stage) string {
	switch s.Reason {
	case "rule":
		return s.Decision
	case "end of tier":
		return fmt.Sprintf("%s: no rule of tier %s matched", s.Decision, s.Tier)
	case "default":
		return s.Decision + ": no policy decides"
	case "no policy":
		return "goes on: no policy decides"
	case "no such endpoint":
		return s.Decision + ": nobody knows whose link it is"
	}
	if s.Decision == "go on" {
		return "goes on, by " + s.Reason
	}
	return s.Decision + " by " + s.Reason
}
