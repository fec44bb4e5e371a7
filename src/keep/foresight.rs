//! What of an image is likely to stay, told before it is read: by name alone, so neither what a symlink
//! leads to nor what a library needs.

use std::collections::HashSet;

use crate::model::profile::kind;
use crate::model::{ImageConfig, Policy, Profile, RootPath};

use super::KeepError;
use super::closure::plain_name;
use super::globs::{Globs, InOrder};
use super::needs::{CONFIGURED, counts};

/// Foretells [`super::decide`]; it may be wrong in either direction.
pub struct Foresight {
    used: HashSet<RootPath>,
    volumes: Vec<RootPath>,
    keep: Globs,
    drop: Globs,
}

impl Foresight {
    /// What one of several profiles, or one of the configurations, is a reason to keep.
    ///
    /// # Errors
    /// For a glob that is none.
    pub fn new<'a>(
        profiles: impl IntoIterator<Item = &'a Profile>,
        configs: impl IntoIterator<Item = &'a ImageConfig>,
        policy: &Policy,
    ) -> Result<Self, KeepError> {
        let always = CONFIGURED.iter().filter_map(|(path, _)| RootPath::parse(path.as_bytes()));
        let mut used: HashSet<RootPath> = always.collect();
        let volumes = configs.into_iter().flat_map(ImageConfig::volumes);
        let volumes = volumes.filter_map(|path| RootPath::parse(path.as_bytes())).collect();
        for profile in profiles {
            let read = |access| counts(profile, access, |kind| kind != kind::WALK);
            let files = profile.files.iter().filter(|(_, cell)| read(&cell.access));
            used.extend(files.map(|(path, _)| path.clone()));
            let changed = profile.written.iter().filter(|(_, access)| read(access));
            used.extend(changed.map(|(path, _)| path.clone()));
        }
        let plain = used.iter().filter_map(plain_name).filter_map(|raw| RootPath::parse(&raw));
        let plain: Vec<RootPath> = plain.collect();
        used.extend(plain);
        Ok(Self {
            used,
            volumes,
            keep: Globs::joined("keep", &policy.keep)?,
            drop: Globs::joined("drop", &policy.drop)?,
        })
    }

    /// For one thread, which asks best for what lies in one folder in a row.
    pub fn looker(&self) -> Looker<'_> {
        let (keep, drop) = (self.keep.in_order(), self.drop.in_order());
        Looker { foresight: self, keep, drop }
    }
}

/// See [`Foresight::looker`].
pub struct Looker<'a> {
    foresight: &'a Foresight,
    keep: InOrder<'a>,
    drop: InOrder<'a>,
}

impl Looker<'_> {
    /// True if the file that an entry names is likely to stay.
    pub fn wants(&mut self, path: &RootPath) -> bool {
        let Foresight { used, volumes, .. } = self.foresight;
        let kept = || used.contains(path) || volumes.iter().any(|volume| path.is_within(volume));
        (kept() || self.keep.picks(path)) && !self.drop.picks(path)
    }
}
