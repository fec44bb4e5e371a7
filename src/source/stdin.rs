//! An archive on standard input: an OCI archive or a docker-archive, plain or compressed.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::model::Digest;
use crate::oci::Image;
use crate::sys::temporary;

use super::container::Container;
use super::reference::{Kind, by_content, inside};
use super::trust::{self, Origin};
use super::{Access, SourceError, spool};

/// How messages and policies call it.
const SHOWN: &str = "standard input";

/// What came, for a process that opens it twice: a pipe gives its bytes only once.
static CAME: Mutex<Option<File>> = Mutex::new(None);

/// Opens the image that comes on standard input.
///
/// # Errors
/// Nothing comes, or no image; there is no room for it.
pub(super) fn read(
    tag: Option<&str>,
    pin: Option<Digest>,
    access: &Access,
) -> Result<Image, SourceError> {
    let container = Container::of_file(spooled()?, Path::new(SHOWN))?;
    let kind = by_content(&container, false);
    let transport = if kind == Kind::OciArchive { "oci-archive" } else { "docker-archive" };
    trust::admit(access, &Origin::Unnamed { transport, shown: SHOWN.to_owned() })?;
    inside(container, kind, tag, pin, access)
}

fn spooled() -> Result<File, SourceError> {
    let mut came = CAME.lock().unwrap_or_else(PoisonError::into_inner);
    if came.is_none() {
        let mut stdin = io::stdin().lock();
        if stdin.is_terminal() {
            let why = "it is a terminal; pipe an archive into slim".to_owned();
            return Err(SourceError::NotAnImage { path: SHOWN.into(), why });
        }
        *came = Some(spool::whole(SHOWN, &mut stdin)?);
    }
    let copy = came.as_ref().map(File::try_clone).expect("filled above");
    copy.map_err(|source| SourceError::Spool {
        from: SHOWN.to_owned(),
        folder: temporary::folder(),
        source,
    })
}
