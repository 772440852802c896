"""Where documents and receipts are: a directory, or etcd. Both do the same for callers (``base.Store``)."""
