//! Messages of containerd.types. Written by scripts/gen-protobuf.py.

crate::wire::messages! {
    Mount {
        r#type: String, one string = 1;
        source: String, one string = 2;
        target: String, one string = 3;
        options: Vec<String>, many string = 4;
    }
}
