//! Extended attributes, which few files have.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Extended attributes by full name (`security.capability`), ACLs included; a pointer's room where
/// there are none, as for nearly every file of an image.
#[derive(Debug, Clone, Default)]
#[allow(
    clippy::box_collection,
    reason = "a map takes three words, and an image has a million of these"
)]
pub struct Xattrs(Option<Box<Map>>);

type Map = BTreeMap<String, Vec<u8>>;

static NONE: Map = Map::new();

impl Xattrs {
    /// True if there are none; what serde asks.
    pub fn is_empty(&self) -> bool {
        (**self).is_empty()
    }
}

impl Deref for Xattrs {
    type Target = Map;

    fn deref(&self) -> &Map {
        self.0.as_deref().unwrap_or(&NONE)
    }
}

impl DerefMut for Xattrs {
    fn deref_mut(&mut self) -> &mut Map {
        self.0.get_or_insert_default()
    }
}

impl PartialEq for Xattrs {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Xattrs {}

impl From<Map> for Xattrs {
    fn from(map: Map) -> Self {
        Self((!map.is_empty()).then(|| Box::new(map)))
    }
}

impl<const N: usize> From<[(String, Vec<u8>); N]> for Xattrs {
    fn from(pairs: [(String, Vec<u8>); N]) -> Self {
        Map::from(pairs).into()
    }
}

impl<'a> IntoIterator for &'a Xattrs {
    type Item = (&'a String, &'a Vec<u8>);
    type IntoIter = std::collections::btree_map::Iter<'a, String, Vec<u8>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Serialize for Xattrs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Xattrs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Map::deserialize(deserializer)?.into())
    }
}
