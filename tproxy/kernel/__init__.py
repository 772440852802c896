"""Thin access to the kernel, a facility a module: namespaces, links, netlink, epoll, TCP, processes."""
