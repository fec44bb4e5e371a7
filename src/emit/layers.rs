//! Filters the original's layers, entry by entry.

use std::collections::HashMap;
use std::io::{self, Read, Seek, Write};
use std::path::Path;

use crate::model::{Node, NodeKind, RootPath, Tree};
use crate::oci::Image;
use crate::oci::apply::{Applied, Stack};
use crate::oci::layer::{self, Entry, LayerStream, Meta};

use super::EmitError;
use super::blob::{BlobWriter, Written};
use super::entry::{What, pad, write_header};
use super::plan::{Group, Plan};

/// Content kept in memory while it waits for its layer; more goes to a temporary file.
const SPOOL: usize = 1 << 20;

/// Writes the layers of the result into the folder `blobs`, lowest first.
pub(super) fn write(
    image: &Image,
    tree: &Tree,
    plan: &Plan,
    blobs: &Path,
) -> Result<Vec<Written>, EmitError> {
    let mut filter = Filter {
        tree,
        plan,
        blobs,
        stack: Stack::default(),
        open: None,
        written: Vec::new(),
        waiting: HashMap::new(),
        root: None,
        emitted: 0,
    };
    for (at, source) in image.layers.iter().enumerate() {
        filter.stack.begin_layer(source.diff_id);
        filter.turn_to(at)?;
        let mut stream = layer::open(image, at)?;
        while let Some(entry) = stream.next_entry()? {
            if crate::sys::signals::interrupted() {
                return Err(EmitError::Interrupted);
            }
            filter.entry(at, &entry, &mut stream)?;
        }
        stream.finish()?;
    }
    filter.close()?;
    filter.check_all_written()?;
    Ok(filter.written)
}

struct Filter<'a> {
    tree: &'a Tree,
    plan: &'a Plan,
    blobs: &'a Path,
    /// Replays the layers, so that inodes get the numbers they have in the tree.
    stack: Stack,
    open: Option<(usize, BlobWriter)>,
    written: Vec<Written>,
    /// Content met before the layer that it goes to: by layer of the result, inode and content.
    waiting: HashMap<usize, Vec<(u64, Spool)>>,
    /// The root's metadata as written last.
    root: Option<Meta>,
    emitted: usize,
}

impl Filter<'_> {
    /// Opens the layer of the result that layer `at` of the original goes to, if it is another one.
    fn turn_to(&mut self, at: usize) -> Result<(), EmitError> {
        let Some(output) = self.plan.output_of[at] else { return Ok(()) };
        if self.open.as_ref().is_some_and(|(open, _)| *open == output) {
            return Ok(());
        }
        self.close()?;
        let writer = BlobWriter::new(self.blobs).map_err(|e| EmitError::write(self.blobs, e))?;
        self.open = Some((output, writer));
        for path in &self.plan.dirs[output] {
            let node = &self.tree.nodes[path];
            self.header(path, &What::Node(&node.kind), &meta_of(node))?;
        }
        for (inode, spool) in self.waiting.remove(&output).unwrap_or_default() {
            let group = &self.plan.groups[&inode];
            let mut content = spool.rewind().map_err(|e| EmitError::write(self.blobs, e))?;
            self.group(group, |out| io::copy(&mut content, out).map(|_| ()))?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), EmitError> {
        if let Some((_, writer)) = self.open.take() {
            let written = writer.finish().map_err(|e| EmitError::write(self.blobs, e))?;
            self.written.push(written);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        at: usize,
        entry: &Entry,
        stream: &mut LayerStream,
    ) -> Result<(), EmitError> {
        match self.stack.apply(entry)? {
            Applied::Root => self.root_entry(at, &entry.meta),
            Applied::New { inode, .. } => {
                let plan = self.plan;
                match plan.groups.get(&inode) {
                    Some(group) => self.content(at, inode, group, stream),
                    None => Ok(()),
                }
            }
            // Folders were written when the layer was opened, links go with their content.
            Applied::Dir(_) | Applied::Link { .. } | Applied::Cut => Ok(()),
        }
    }

    /// The root's own entry stays where it changes something and the layer has anything to keep.
    fn root_entry(&mut self, at: usize, meta: &Meta) -> Result<(), EmitError> {
        let here = self.plan.output_of[at];
        if here.is_none() || here != self.open.as_ref().map(|(open, _)| *open) {
            return Ok(());
        }
        if self.root.as_ref() != Some(meta) {
            self.root = Some(meta.clone());
            self.header(&RootPath::root(), &What::Node(&NodeKind::Dir), meta)?;
        }
        Ok(())
    }

    fn content(
        &mut self,
        at: usize,
        inode: u64,
        group: &Group,
        stream: &mut LayerStream,
    ) -> Result<(), EmitError> {
        let home = self.plan.output_of[group.home];
        let open = self.open.as_ref().map(|(open, _)| *open);
        if home.is_some() && home == open && home == self.plan.output_of[at] {
            let mut failed = None;
            let written = self.group(group, |out| copy(stream, out, &mut failed));
            return failed.map_or(written, |error| Err(error.into()));
        }
        let mut spool = Spool::new();
        let mut failed = None;
        let spooled = copy(stream, &mut spool, &mut failed);
        failed.map_or(Ok(()), |error| Err(EmitError::from(error)))?;
        spooled.map_err(|e| EmitError::write(self.blobs, e))?;
        self.waiting.entry(home.unwrap_or(0)).or_default().push((inode, spool));
        Ok(())
    }

    /// Writes the first name with the content, the others as links to it.
    fn group(
        &mut self,
        group: &Group,
        content: impl FnOnce(&mut BlobWriter) -> io::Result<()>,
    ) -> Result<(), EmitError> {
        let Some((first, others)) = group.names.split_first() else { return Ok(()) };
        let node = &self.tree.nodes[first];
        let meta = meta_of(node);
        self.header(first, &What::Node(&node.kind), &meta)?;
        if let NodeKind::File { size, .. } = node.kind {
            let out = self.out();
            let copied = content(out).and_then(|()| pad(out, size));
            copied.map_err(|e| EmitError::write(self.blobs, e))?;
        }
        for other in others {
            self.header(other, &What::Link(first), &meta)?;
        }
        self.emitted += 1;
        Ok(())
    }

    fn header(&mut self, path: &RootPath, what: &What<'_>, meta: &Meta) -> Result<(), EmitError> {
        let written = write_header(self.out(), path, what, meta);
        written.map_err(|e| EmitError::write(self.blobs, e))
    }

    fn out(&mut self) -> &mut BlobWriter {
        &mut self.open.as_mut().expect("a layer is open while entries are written").1
    }

    /// A tree that does not belong to these layers shows here.
    fn check_all_written(&self) -> Result<(), EmitError> {
        if self.emitted == self.plan.groups.len() { Ok(()) } else { Err(EmitError::OtherTree) }
    }
}

/// Copies the content at hand; an error of the layer itself goes to `failed`.
fn copy(
    stream: &mut LayerStream,
    out: &mut impl Write,
    failed: &mut Option<layer::LayerError>,
) -> io::Result<()> {
    let mut buf = vec![0; 64 << 10];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(n) => out.write_all(&buf[..n])?,
            Err(error) => {
                *failed = Some(error);
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
}

fn meta_of(node: &Node) -> Meta {
    Meta {
        mode: node.mode,
        uid: node.uid,
        gid: node.gid,
        mtime: node.mtime,
        xattrs: node.xattrs.clone(),
    }
}

/// Content that waits.
struct Spool(tempfile::SpooledTempFile);

impl Spool {
    fn new() -> Self {
        Self(tempfile::SpooledTempFile::new(SPOOL))
    }

    fn rewind(mut self) -> io::Result<impl Read> {
        self.0.rewind()?;
        Ok(self.0)
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
