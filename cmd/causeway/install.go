package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/causeway-net/causeway/cni-plugin/install"
)

// defaultSource is where the image has the plugins' programs.
const defaultSource = "/opt/cni/bin"

// installCommand copies the plugins' programs to the host, before the agent starts.
func installCommand() *cobra.Command {
	var source, bin string
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Put the CNI plugins' programs on the host",
		Long: "Put the CNI plugins' programs on the host: causeway-cni, portmap and bandwidth.\n\n" +
			"causeway-cni becomes this version's, whatever was there. portmap and bandwidth that are of the same or a newer\n" +
			"version stay, and so do those of unknown version that speak the CNI version in use; others are put aside.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd.Flags(), os.Environ()); err != nil {
				return err
			}
			done, err := install.Place(cmd.Context(), source, bin)
			for _, d := range done {
				fmt.Fprintln(cmd.OutOrStdout(), d)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&source, "source-dir", defaultSource, "folder to copy from")
	cmd.Flags().StringVar(&bin, "bin-dir", "/host/opt/cni/bin", "the container runtime's folder of plugins")
	return cmd
}
