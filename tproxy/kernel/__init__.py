"""One facility of the kernel a module: namespaces, links, netlink, epoll, TCP options, child processes."""
