//! What a layer's folder cannot have in a user namespace: devices, owners without an id there, and
//! the host's root's attributes. The tree and the slim image have them all the same.

use std::cell::RefCell;

use rustix::fs::{Gid, Uid};
use serde::{Deserialize, Serialize};

use crate::model::{Node, NodeKind, RootPath, Tree};
use crate::sys::userns::{self, IdMap};

/// What a user namespace takes away from the one who unpacks.
pub(super) struct Limits {
    pub rootless: bool,
    users: IdMap,
    groups: IdMap,
    pub lacking: RefCell<Lacking>,
}

/// What of a layer could not be made as the layer has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lacking {
    /// Devices that are not there, /dev apart: containers have one of their own.
    pub devices: Vec<RootPath>,
    /// Paths that belong to root instead of an owner that does not exist here.
    pub owners: u64,
    /// Extended attributes that were refused.
    pub attributes: u64,
}

impl Limits {
    pub fn here() -> Self {
        let (users, groups) = (IdMap::users(), IdMap::groups());
        Self { rootless: userns::inside(), users, groups, lacking: RefCell::default() }
    }

    /// Notes a device that cannot be made: mknod(2) takes CAP_MKNOD over the host.
    pub fn lacks(&self, path: &RootPath, node: &Node) -> bool {
        let device = matches!(node.kind, NodeKind::Char { .. } | NodeKind::Block { .. });
        if self.rootless && device && !path.as_bytes().starts_with(b"/dev/") {
            self.lacking.borrow_mut().devices.push(path.clone());
        }
        self.rootless && device
    }

    /// The same for a further name of a device.
    pub fn lacks_at(&self, path: &RootPath, tree: &Tree) -> bool {
        tree.get(path).is_some_and(|node| self.lacks(path, node))
    }

    /// The owner that a file gets: 0 for an id that does not exist here.
    pub fn owner(&self, uid: u32, gid: u32) -> (Uid, Gid) {
        let (user, group) = (present(&self.users, uid), present(&self.groups, gid));
        if (user, group) != (uid, gid) {
            self.lacking.borrow_mut().owners += 1;
        }
        (Uid::from_raw(user), Gid::from_raw(group))
    }

    /// The overlay's own mark for a folder that hides those below.
    pub fn opaque(&self) -> &'static str {
        if self.rootless { "user.overlay.opaque" } else { "trusted.overlay.opaque" }
    }
}

impl Lacking {
    /// Adds what another layer lacks.
    pub fn add(&mut self, other: &Self) {
        self.devices.extend(other.devices.iter().cloned());
        self.owners += other.owners;
        self.attributes += other.attributes;
    }

    /// What the user should know.
    pub fn warnings(&self) -> Vec<String> {
        let mut all = Vec::new();
        if !self.devices.is_empty() {
            let shown = self.devices.iter().take(5).map(RootPath::to_string).collect::<Vec<_>>();
            let rest = self.devices.len() - shown.len();
            let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            all.push(format!(
                "devices of the image are missing in the container, for only root can make them: \
                 {}{more} (--keep puts them into the slim image)",
                shown.join(", ")
            ));
        }
        if self.owners > 0 {
            all.push(format!(
                "{} paths of the image belong to root in the container: their owners do not exist \
                 in slim's user namespace (in the slim image they have their owners)",
                self.owners
            ));
        }
        if self.attributes > 0 {
            all.push(format!(
                "{} extended attributes of the image are missing in the container: only root can \
                 set them (the slim image has them)",
                self.attributes
            ));
        }
        all
    }
}

/// What an id becomes when it is unpacked here.
pub(super) fn present(map: &IdMap, id: u32) -> u32 {
    if map.has(id) { id } else { 0 }
}

/// Who a layer was unpacked by: folders of different namespaces are no good to each other.
pub(super) fn owners() -> String {
    if !userns::inside() {
        return String::new();
    }
    format!("{} {}", IdMap::users(), IdMap::groups())
}
