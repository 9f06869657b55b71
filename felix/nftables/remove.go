package nftables

import (
	"context"
	"fmt"

	"sigs.k8s.io/knftables"
)

// Remove takes the table away, and with it all that is ours, in one transaction. Nothing that
// is not there is an error, nor is a host without nft. It must not run beside a Policy. kernel is optional: a
// Host of this network namespace. gone: there was a table.
func Remove(ctx context.Context, kernel Kernel) (gone bool, err error) {
	if kernel == nil {
		kernel = NewHost()
	}
	now, err := kernel.Read(ctx)
	if err != nil {
		return false, fmt.Errorf("read table inet %s: %w", TableName, err)
	}
	if !now.there {
		return false, nil
	}
	tx := kernel.NewTransaction()
	tx.Add(&knftables.Table{}) // so that it is no error when somebody was faster
	tx.Delete(&knftables.Table{})
	if err := kernel.Run(ctx, tx); err != nil {
		return true, fmt.Errorf("remove table inet %s: %w", TableName, err)
	}
	return true, nil
}
