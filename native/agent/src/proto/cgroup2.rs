//! Messages of io.containerd.cgroups.v2. Written by scripts/gen-protobuf.py.

crate::wire::messages! {
    Metrics {
        pids: Option<PidsStat>, opt message = 1;
        cpu: Option<CPUStat>, opt message = 2;
        memory: Option<MemoryStat>, opt message = 4;
        rdma: Option<RdmaStat>, opt message = 5;
        io: Option<IOStat>, opt message = 6;
        hugetlb: Vec<HugeTlbStat>, many message = 7;
        memory_events: Option<MemoryEvents>, opt message = 8;
        network: Vec<NetworkStat>, many message = 9;
    }
    PSIData {
        avg10: f64, one double = 1;
        avg60: f64, one double = 2;
        avg300: f64, one double = 3;
        total: u64, one uint64 = 4;
    }
    PSIStats {
        some: Option<PSIData>, opt message = 1;
        full: Option<PSIData>, opt message = 2;
    }
    PidsStat {
        current: u64, one uint64 = 1;
        limit: u64, one uint64 = 2;
    }
    CPUStat {
        usage_usec: u64, one uint64 = 1;
        user_usec: u64, one uint64 = 2;
        system_usec: u64, one uint64 = 3;
        nr_periods: u64, one uint64 = 4;
        nr_throttled: u64, one uint64 = 5;
        throttled_usec: u64, one uint64 = 6;
        psi: Option<PSIStats>, opt message = 7;
        nr_bursts: u64, one uint64 = 8;
        burst_usec: u64, one uint64 = 9;
    }
    MemoryStat {
        anon: u64, one uint64 = 1;
        file: u64, one uint64 = 2;
        kernel_stack: u64, one uint64 = 3;
        slab: u64, one uint64 = 4;
        sock: u64, one uint64 = 5;
        shmem: u64, one uint64 = 6;
        file_mapped: u64, one uint64 = 7;
        file_dirty: u64, one uint64 = 8;
        file_writeback: u64, one uint64 = 9;
        anon_thp: u64, one uint64 = 10;
        inactive_anon: u64, one uint64 = 11;
        active_anon: u64, one uint64 = 12;
        inactive_file: u64, one uint64 = 13;
        active_file: u64, one uint64 = 14;
        unevictable: u64, one uint64 = 15;
        slab_reclaimable: u64, one uint64 = 16;
        slab_unreclaimable: u64, one uint64 = 17;
        pgfault: u64, one uint64 = 18;
        pgmajfault: u64, one uint64 = 19;
        workingset_refault: u64, one uint64 = 20;
        workingset_activate: u64, one uint64 = 21;
        workingset_nodereclaim: u64, one uint64 = 22;
        pgrefill: u64, one uint64 = 23;
        pgscan: u64, one uint64 = 24;
        pgsteal: u64, one uint64 = 25;
        pgactivate: u64, one uint64 = 26;
        pgdeactivate: u64, one uint64 = 27;
        pglazyfree: u64, one uint64 = 28;
        pglazyfreed: u64, one uint64 = 29;
        thp_fault_alloc: u64, one uint64 = 30;
        thp_collapse_alloc: u64, one uint64 = 31;
        usage: u64, one uint64 = 32;
        usage_limit: u64, one uint64 = 33;
        swap_usage: u64, one uint64 = 34;
        swap_limit: u64, one uint64 = 35;
        max_usage: u64, one uint64 = 36;
        swap_max_usage: u64, one uint64 = 37;
        psi: Option<PSIStats>, opt message = 38;
        workingset_refault_anon: u64, one uint64 = 39;
        workingset_refault_file: u64, one uint64 = 40;
        workingset_activate_anon: u64, one uint64 = 41;
        workingset_activate_file: u64, one uint64 = 42;
    }
    MemoryEvents {
        low: u64, one uint64 = 1;
        high: u64, one uint64 = 2;
        max: u64, one uint64 = 3;
        oom: u64, one uint64 = 4;
        oom_kill: u64, one uint64 = 5;
        oom_group_kill: u64, one uint64 = 6;
    }
    RdmaStat {
        current: Vec<RdmaEntry>, many message = 1;
        limit: Vec<RdmaEntry>, many message = 2;
    }
    RdmaEntry {
        device: String, one string = 1;
        hca_handles: u32, one uint32 = 2;
        hca_objects: u32, one uint32 = 3;
    }
    IOStat {
        usage: Vec<IOEntry>, many message = 1;
        psi: Option<PSIStats>, opt message = 2;
    }
    IOEntry {
        major: u64, one uint64 = 1;
        minor: u64, one uint64 = 2;
        rbytes: u64, one uint64 = 3;
        wbytes: u64, one uint64 = 4;
        rios: u64, one uint64 = 5;
        wios: u64, one uint64 = 6;
    }
    HugeTlbStat {
        current: u64, one uint64 = 1;
        max: u64, one uint64 = 2;
        pagesize: String, one string = 3;
        failcnt: u64, one uint64 = 4;
    }
    NetworkStat {
        name: String, one string = 1;
        rx_bytes: u64, one uint64 = 2;
        rx_packets: u64, one uint64 = 3;
        rx_errors: u64, one uint64 = 4;
        rx_dropped: u64, one uint64 = 5;
        tx_bytes: u64, one uint64 = 6;
        tx_packets: u64, one uint64 = 7;
        tx_errors: u64, one uint64 = 8;
        tx_dropped: u64, one uint64 = 9;
    }
}
