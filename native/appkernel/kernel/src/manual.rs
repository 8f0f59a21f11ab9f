//! docs/syscalls.md, from the table of calls.

use std::fmt::Write;

use drupe_appkernel_core::table::{table, Entry, State};

const HEAD: &str = "# System calls of the application kernel

Made by `drupe-appkernel syscalls` from the table that the kernel calls by (`native/appkernel/core/src/table.rs`). A call that is not
here is ENOSYS. *Full* means: as Linux 6.1 does for programs in a container, as far as the tests know.

";

fn row(number: usize, entry: &Entry) -> String {
    let (state, note) = match entry.state {
        State::Full => ("full", ""),
        State::Partial(missing) => ("partial", missing),
        State::Missing(why) => ("ENOSYS", why),
    };
    format!("| {number} | {} | {state} | {note} |\n", entry.name)
}

/// The page.
pub fn page() -> String {
    let known: Vec<_> = table().iter().enumerate().filter_map(|(n, entry)| Some((n, entry.as_ref()?))).collect();
    let count =
        |full: bool| known.iter().filter(|(_, e)| e.handler.is_some() && (e.state == State::Full) == full).count();
    let mut page = String::from(HEAD);
    let _written = writeln!(page, "{} calls in full, {} in part.\n", count(true), count(false));
    page.push_str("| number | call | state | missing, or why not |\n|---|---|---|---|\n");
    known.iter().for_each(|(number, entry)| page.push_str(&row(*number, entry)));
    page
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_manual_is_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../docs/syscalls.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == super::page(), "run: drupe-appkernel syscalls > docs/syscalls.md");
    }
}
