package membership

import "context"

// RenewNow is one look of Run.
func (m *Membership) RenewNow(ctx context.Context, ask func(context.Context, []byte) ([][]byte, error)) error {
	return m.renewIfOld(ctx, ask)
}
