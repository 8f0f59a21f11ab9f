//! The memory that this process's cgroup may have, as it is when it starts.

use std::fs;

/// Mount point, controller (v1) or none (v2), file.
const PLACES: [(&str, &str, &str); 3] = [
    ("/sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes"),
    ("/sys/fs/cgroup", "", "memory.max"),
    ("/sys/fs/cgroup/unified", "", "memory.max"),
];

/// In bytes; 0 where there is no limit, or none can be read (cgroups(7)).
pub fn memory_limit_bytes() -> u64 {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = |(mount, controller, file): &(&str, &str, &str)| {
        let text = fs::read_to_string(format!("{mount}{}/{file}", path_of(&own, controller)?)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    PLACES.iter().find_map(limit).unwrap_or(0)
}

/// The path of "N:controllers:path" that has this controller.
fn path_of<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path.trim_end_matches('/'))
    })
}

#[cfg(test)]
mod tests {
    use super::path_of;

    #[test]
    fn both_versions() {
        let hybrid = "12:memory:/pod/one\n3:cpu,cpuacct:/pod\n0::/new\n";
        assert_eq!(path_of(hybrid, "memory"), Some("/pod/one"));
        assert_eq!(path_of(hybrid, "cpuacct"), Some("/pod"));
        assert_eq!(path_of(hybrid, ""), Some("/new"));
        assert_eq!(path_of("0::/\n", "memory"), None);
    }
}
