package nftables

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"sigs.k8s.io/knftables"
)

// Remove takes the table away, and with it all that is ours, in one transaction. Nothing that
// is not there is an error, nor is a kernel without nf_tables. It must not run beside a Policy. kernel is optional: a
// Host of this network namespace. gone: there was a table.
func Remove(ctx context.Context, kernel Kernel) (gone bool, err error) {
	if kernel == nil {
		kernel = NewHost()
	}
	now, err := kernel.Read(ctx)
	switch {
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.EPROTONOSUPPORT):
		return false, nil // a kernel without nf_tables
	case err != nil:
		return false, fmt.Errorf("read table inet %s: %w", TableName, err)
	case !now.there:
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
