//! Messages of containerd.v1.types. Written by scripts/gen-protobuf.py.

crate::wire::messages! {
    ProcessInfo {
        pid: u32, one uint32 = 1;
        info: Option<super::wellknown::Any>, opt message = 2;
    }
}
