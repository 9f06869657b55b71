package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/causeway-net/causeway/bgp/child"
	"github.com/causeway-net/causeway/bgp/speaker"
)

// speakerCommand is what the agent starts as its unprivileged child. It has no flags: all it is
// told comes over an inherited descriptor.
func speakerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "speaker",
		Short:  "The BGP speaker; started by the agent",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			in, err := child.Inherit()
			if err != nil {
				return err
			}
			return speaker.Run(cmd.Context(), speaker.Options{Inheritance: in, Stderr: os.Stderr})
		},
	}
}
