"""A stand-in hypervisor in namespaces, for `tproxy lab`, tests and benchmarks. Needs only the top level."""
