//! The folder of results: each file written whole or not at all.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::emit::{self, ImageFormat};
use crate::seccomp::Allowlist;

use super::{PipelineError, Summary, io_at};

/// Writes `bytes` under a temporary name beside `path`, syncs, renames. `path`'s folder must exist.
///
/// # Errors
/// Whatever stops the write, with the path; the old file is then still there.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), PipelineError> {
    write_by(path, |file| file.write_all(bytes))
}

/// The same for a value, as [`pretty`] has it, without holding its text: a profile of 100,000 files
/// has 60 MB of it.
pub(super) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), PipelineError> {
    write_by(path, |file| {
        let mut text = std::io::BufWriter::new(file);
        serde_json::to_writer_pretty(&mut text, value)?;
        text.write_all(b"\n")?;
        text.flush()
    })
}

fn write_by(
    path: &Path,
    fill: impl FnOnce(&mut fs::File) -> std::io::Result<()>,
) -> Result<(), PipelineError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = emit::part(folder)?;
        fill(file.as_file_mut())?;
        file.as_file().sync_all()?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode)?;
        file.persist(path).map_err(|e| e.error)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(io_at("cannot write", path))
}

/// The files of a result folder.
pub(super) struct Results {
    folder: PathBuf,
}

impl Results {
    /// Makes the folder if need be, and sees that it can be written, before anything runs for it.
    pub(super) fn open(folder: &Path) -> Result<Self, PipelineError> {
        let writable = fs::create_dir_all(folder).and_then(|()| emit::part(folder));
        writable.map_err(|error| PipelineError::Host {
            what: format!("the results cannot be written to {}", folder.display()),
            why: error.to_string(),
            way_out: "choose a folder that can be written with -o".to_owned(),
        })?;
        emit::sweep(folder);
        Ok(Self { folder: folder.to_owned() })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where the image of this format goes.
    ///
    /// # Errors
    /// A folder lies there that is no image layout: it is somebody's, and would be replaced.
    pub(super) fn image(&self, format: ImageFormat) -> Result<PathBuf, PipelineError> {
        let place = self.path(match format {
            ImageFormat::Archive => "image.tar",
            ImageFormat::Layout => "image",
        });
        let is_empty = |dir: &Path| fs::read_dir(dir).is_ok_and(|mut list| list.next().is_none());
        if place.is_dir() && !place.join("oci-layout").exists() && !is_empty(&place) {
            return Err(PipelineError::Usage(format!(
                "{} is a folder and no image: move it away, or choose another folder with -o",
                place.display()
            )));
        }
        Ok(place)
    }

    /// Removes what an earlier run left and this one, which wrote an image, does not: it would pass for
    /// this one's.
    pub(super) fn remove_others(&self, written: ImageFormat) -> Result<(), PipelineError> {
        self.remove_images(Some(written))?;
        self.remove_recipe()
    }

    /// Removes images of an earlier run in every format but one.
    pub(super) fn remove_images(&self, but: Option<ImageFormat>) -> Result<(), PipelineError> {
        if but != Some(ImageFormat::Archive) {
            remove(&self.path("image.tar"))?;
        }
        let layout = self.path("image");
        if but != Some(ImageFormat::Layout) && layout.join("oci-layout").exists() {
            fs::remove_dir_all(&layout).map_err(io_at("cannot remove", &layout))?;
        }
        Ok(())
    }

    fn remove_recipe(&self) -> Result<(), PipelineError> {
        emit::recipe_in(&self.folder).iter().try_for_each(|path| remove(path))
    }

    /// Removes image, recipe and seccomp files of an earlier run, which would pass for this one's.
    pub(super) fn remove_products(&self) -> Result<(), PipelineError> {
        for name in ["seccomp.json", "seccomp.oci.json"] {
            remove(&self.path(name))?;
        }
        self.remove_images(None)?;
        self.remove_recipe()
    }

    pub(super) fn seccomp(&self, allowlist: &Allowlist) -> Result<(), PipelineError> {
        write_whole(&self.path("seccomp.json"), pretty(&allowlist.docker).as_bytes())?;
        write_whole(&self.path("seccomp.oci.json"), pretty(&allowlist.oci).as_bytes())
    }

    pub(super) fn summary(&self, summary: &Summary) -> Result<(), PipelineError> {
        write_whole(&self.path("summary.json"), pretty(summary).as_bytes())
    }

    /// Moves a finished file or folder into place under `name`.
    pub(super) fn place(&self, from: &Path, to: &Path) -> Result<(), PipelineError> {
        if to.is_dir() {
            fs::remove_dir_all(to).map_err(io_at("cannot remove", to))?;
        }
        fs::rename(from, to).map_err(io_at("cannot write", to))
    }

    /// Copies the container's output, whole.
    pub(super) fn log(&self, from: &Path) -> Result<(), PipelineError> {
        let bytes = fs::read(from).unwrap_or_default();
        write_whole(&self.path("container.log"), &bytes)
    }
}

fn remove(path: &Path) -> Result<(), PipelineError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io_at("cannot remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// JSON for files: indented, with a newline at the end.
pub(super) fn pretty(value: &impl serde::Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("plain data");
    text.push('\n');
    text
}
