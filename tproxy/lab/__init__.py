"""A stand-in hypervisor in namespaces, for `tproxy lab`, tests and benchmarks. Imports the top level only."""
