//! Names of a directory, in the order in which they were made.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Node;

/// Entries by name, and by a cookie that is never given twice, so that readers go on where they were.
#[derive(Default)]
pub(super) struct Entries {
    by_name: HashMap<Vec<u8>, (u64, Arc<Node>)>,
    by_cookie: BTreeMap<u64, Vec<u8>>,
    last_cookie: u64,
}

impl Entries {
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Node>> {
        self.by_name.get(name).map(|(_, node)| node)
    }

    /// Add or replace; the node that was there.
    pub fn insert(&mut self, name: &[u8], node: Arc<Node>) -> Option<Arc<Node>> {
        if let Some((_, old)) = self.by_name.get_mut(name) {
            return Some(std::mem::replace(old, node));
        }
        self.last_cookie += 1;
        self.by_cookie.insert(self.last_cookie, name.to_vec());
        self.by_name.insert(name.to_vec(), (self.last_cookie, node));
        None
    }

    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Node>> {
        let (cookie, node) = self.by_name.remove(name)?;
        self.by_cookie.remove(&cookie);
        Some(node)
    }

    pub fn into_nodes(self) -> Vec<Arc<Node>> {
        self.by_name.into_values().map(|(_, node)| node).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Up to `count` entries after `cookie`.
    pub fn after(&self, cookie: u64, count: usize) -> Vec<(u64, Vec<u8>, Arc<Node>)> {
        let following = self.by_cookie.range(cookie.saturating_add(1)..).take(count);
        let with_node = following.filter_map(|(&at, name)| Some((at, name.clone(), Arc::clone(self.get(name)?))));
        with_node.collect()
    }
}
