//! An archive on standard input: an OCI archive or a docker-archive, plain or compressed.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::model::Digest;
use crate::oci::Image;

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
pub(super) fn read(pin: Option<Digest>, access: &Access) -> Result<Image, SourceError> {
    let container = Container::of_file(spooled()?, Path::new(SHOWN))?;
    let kind = by_content(&container, false);
    let transport = if kind == Kind::OciArchive { "oci-archive" } else { "docker-archive" };
    trust::admit(access, &Origin::Unnamed { transport, shown: SHOWN.to_owned() })?;
    inside(container, kind, None, pin, access)
}

fn spooled() -> Result<File, SourceError> {
    let folder = spool::folder();
    let error =
        |source| SourceError::Spool { from: SHOWN.to_owned(), folder: folder.clone(), source };
    let mut came = CAME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(file) = &*came {
        return file.try_clone().map_err(error);
    }
    let mut stdin = io::stdin().lock();
    if stdin.is_terminal() {
        let (path, why) = (SHOWN.into(), "it is a terminal; pipe an archive into slim".to_owned());
        return Err(SourceError::NotAnImage { path, why });
    }
    let mut file = tempfile::tempfile_in(&folder).map_err(error)?;
    io::copy(&mut stdin, &mut file).map_err(error)?;
    let copy = file.try_clone().map_err(error)?;
    *came = Some(file);
    Ok(copy)
}
