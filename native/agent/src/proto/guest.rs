//! Messages of drupe.guest.v1. Written by scripts/gen-protobuf.py.

crate::wire::messages! {
    CheckRequest {
        protocol: u32, one uint32 = 1;
        host_version: String, one string = 2;
    }
    CheckResponse {
        protocol: u32, one uint32 = 1;
        agent_version: String, one string = 2;
        features: Vec<String>, many string = 3;
        kernel: String, one string = 4;
        boot_id: String, one string = 5;
        is_set_up: bool, one bool = 6;
        processors: u32, one uint32 = 7;
        memory_bytes: u64, one uint64 = 8;
    }
    PutAwayResponse {
        code_begin: u64, one uint64 = 1;
        code_end: u64, one uint64 = 2;
    }
    SetupRequest {
        hostname: String, one string = 1;
        domainname: String, one string = 2;
        machine_id: String, one string = 3;
        resolv_conf: Vec<u8>, one bytes = 4;
        hosts: Vec<u8>, one bytes = 5;
        sysctls: std::collections::BTreeMap<String, String>, map string = 6;
        mounts: Vec<GuestMount>, many message = 7;
        interfaces: Vec<Interface>, many message = 8;
        routes: Vec<Route>, many message = 9;
        clock_unix_ns: i64, one int64 = 10;
        entropy: Vec<u8>, one bytes = 11;
        shm_size_bytes: u64, one uint64 = 12;
        share_pid: bool, one bool = 13;
    }
    GuestMount {
        r#type: String, one string = 1;
        source: String, one string = 2;
        target: String, one string = 3;
        options: Vec<String>, many string = 4;
        device: Option<Device>, opt message = 5;
    }
    Device {
        disk_serial: Option<String>, opt string = 1;
        mac: Option<String>, opt string = 2;
        pci: Option<String>, opt string = 3;
    }
    PutBundleRequest {
        id: String, one string = 1;
        config_json: Vec<u8>, one bytes = 2;
        rootfs: Vec<GuestMount>, many message = 3;
        writable_upper: bool, one bool = 4;
        upper_size_bytes: u64, one uint64 = 5;
        upper: Option<GuestMount>, opt message = 6;
    }
    PutBundleResponse {
        bundle: String, one string = 1;
        rootfs: String, one string = 2;
    }
    ReadOutputRequest {
        id: String, one string = 1;
        exec_id: String, one string = 2;
        stream: i32, one int32 = 3;
        max_bytes: u32, one uint32 = 4;
        offset: u64, one uint64 = 5;
    }
    ReadOutputResponse {
        data: Vec<u8>, one bytes = 1;
        end: bool, one bool = 2;
        offset: u64, one uint64 = 3;
    }
    WriteInputRequest {
        id: String, one string = 1;
        exec_id: String, one string = 2;
        data: Vec<u8>, one bytes = 3;
        close: bool, one bool = 4;
        offset: Option<u64>, opt uint64 = 5;
    }
    ConnectRequest {
        port: u32, one uint32 = 1;
    }
    ConnectResponse {
        exec_id: String, one string = 1;
    }
    DisconnectRequest {
        exec_id: String, one string = 1;
    }
    EventsRequest {
        after: u64, one uint64 = 1;
    }
    Event {
        number: u64, one uint64 = 1;
        exit: Option<Exit>, opt message = 2;
        oom: Option<Oom>, opt message = 3;
        panic: Option<String>, opt string = 4;
        device_added: Option<String>, opt string = 5;
        device_removed: Option<String>, opt string = 6;
    }
    Exit {
        id: String, one string = 1;
        exec_id: String, one string = 2;
        pid: u32, one uint32 = 3;
        status: u32, one uint32 = 4;
        at_unix_ns: i64, one int64 = 5;
        oom_killed: bool, one bool = 6;
    }
    Oom {
        id: String, one string = 1;
    }
    ProcessesRequest {
        id: String, one string = 1;
    }
    ProcessesResponse {
        processes: Vec<Process>, many message = 1;
    }
    Process {
        pid: u32, one uint32 = 1;
        ppid: u32, one uint32 = 2;
        uid: u32, one uint32 = 3;
        command: String, one string = 4;
        state: String, one string = 5;
        rss_bytes: u64, one uint64 = 6;
        cpu_ns: u64, one uint64 = 7;
        started_unix_ns: i64, one int64 = 8;
    }
    CopyChunk {
        id: String, one string = 1;
        path: String, one string = 2;
        data: Vec<u8>, one bytes = 3;
    }
    CopyOutRequest {
        id: String, one string = 1;
        path: String, one string = 2;
        follow_symlink: bool, one bool = 3;
    }
    Interface {
        device: Option<Device>, opt message = 1;
        name: String, one string = 2;
        mac: String, one string = 3;
        mtu: u32, one uint32 = 4;
        addresses: Vec<String>, many string = 5;
        up: bool, one bool = 6;
    }
    Route {
        destination: String, one string = 1;
        gateway: String, one string = 2;
        interface: String, one string = 3;
        source: String, one string = 4;
        scope: u32, one uint32 = 5;
        metric: u32, one uint32 = 6;
    }
    SetInterfacesRequest {
        interfaces: Vec<Interface>, many message = 1;
        remove: Vec<String>, many string = 2;
    }
    SetRoutesRequest {
        routes: Vec<Route>, many message = 1;
    }
    ListInterfacesResponse {
        interfaces: Vec<Interface>, many message = 1;
        routes: Vec<Route>, many message = 2;
    }
    MountRequest {
        mount: Option<GuestMount>, opt message = 1;
        id: String, one string = 2;
    }
    UnmountRequest {
        target: String, one string = 1;
        id: String, one string = 2;
    }
    AwaitDeviceRequest {
        device: Option<Device>, opt message = 1;
        gone: bool, one bool = 2;
        timeout_ms: u32, one uint32 = 3;
    }
    AwaitDeviceResponse {
        name: String, one string = 1;
        major: u32, one uint32 = 2;
        minor: u32, one uint32 = 3;
    }
    SetOnlineRequest {
        processors: u32, one uint32 = 1;
        memory_bytes: u64, one uint64 = 2;
        timeout_ms: u32, one uint32 = 3;
    }
    SetOnlineResponse {
        processors: u32, one uint32 = 1;
        memory_bytes: u64, one uint64 = 2;
    }
    SetClockRequest {
        unix_ns: i64, one int64 = 1;
    }
    AddEntropyRequest {
        data: Vec<u8>, one bytes = 1;
    }
    SetSysctlsRequest {
        sysctls: std::collections::BTreeMap<String, String>, map string = 1;
    }
    FreezeRequest {
        frozen: bool, one bool = 1;
    }
    RenewRequest {
        entropy: Vec<u8>, one bytes = 1;
        clock_unix_ns: i64, one int64 = 2;
        machine_id: String, one string = 3;
        hostname: String, one string = 4;
        interfaces: Vec<Interface>, many message = 5;
        routes: Vec<Route>, many message = 6;
        resolv_conf: Vec<u8>, one bytes = 7;
        hosts: Vec<u8>, one bytes = 8;
        thaw: bool, one bool = 9;
    }
    RenewResponse {
        renewed: Vec<String>, many string = 1;
    }
    MetricsResponse {
        memory_total_bytes: u64, one uint64 = 1;
        memory_available_bytes: u64, one uint64 = 2;
        agent_rss_bytes: u64, one uint64 = 3;
        cpu_busy_ns: u64, one uint64 = 4;
        processes: u32, one uint32 = 5;
        uptime_s: f64, one double = 6;
    }
    ShutdownRequest {
        timeout_ms: u32, one uint32 = 1;
        reboot: bool, one bool = 2;
    }
}
