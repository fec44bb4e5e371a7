//! What kept files need that no recorder sees reliably: targets of symlinks, ELF interpreters,
//! libraries, `#!` interpreters.

use std::collections::BTreeSet;

use super::Keeper;
use crate::model::{ElfFacts, Facts, ImageConfig, Node, NodeKind, Reason, RootPath, Tree};

/// Where programs and libraries are looked for.
pub struct Search {
    /// PATH of the image.
    path: Vec<String>,
    /// LD_LIBRARY_PATH of the image.
    library_path: Vec<String>,
}

/// What Docker sets where an image has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// True for what [`Search::close_over`] has something to say about.
pub fn needs_others(node: &Node) -> bool {
    matches!(node.kind, NodeKind::Symlink { .. } | NodeKind::File { facts: Some(_), .. })
}

/// An object that asks for libraries.
struct Object {
    path: RootPath,
    /// RPATH directories of the objects that loaded it, nearest first (ld.so(8)).
    inherited: Vec<Vec<u8>>,
}

impl Search {
    pub fn new(config: &ImageConfig) -> Self {
        let env = config.env();
        let list = |key: &str, default: &str| {
            let value = env.iter().rev().find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            let words = value.unwrap_or(default).split([':', ';']).filter(|w| !w.is_empty());
            words.map(str::to_owned).collect()
        };
        Self { path: list("PATH", DEFAULT_PATH), library_path: list("LD_LIBRARY_PATH", "") }
    }

    /// Adds what a kept path needs.
    pub fn close_over(&self, path: &RootPath, keeper: &mut Keeper<'_>) {
        let tree = keeper.tree;
        let Some(node) = tree.get(path) else { return };
        if let Some(plain) = plain_name(path) {
            keeper.walk(&RootPath::root(), &plain, Reason::PlainOf(path.clone()));
        }
        match &node.kind {
            NodeKind::Symlink { target } => {
                let cwd = path.parent().unwrap_or_else(RootPath::root);
                keeper.walk(&cwd, target, Reason::TargetOf(path.clone()));
            }
            NodeKind::File { facts: Some(facts), .. } => match facts.as_ref() {
                Facts::Shebang { interpreter } if keeper.may_run(path) => {
                    self.shebang(path, interpreter, keeper);
                }
                Facts::Shebang { .. } => {}
                Facts::Elf(elf) => {
                    if let Some(interpreter) = &elf.interpreter {
                        let reason = Reason::InterpreterOf(path.clone());
                        keeper.walk(&RootPath::root(), interpreter, reason);
                    }
                    self.libraries(path, keeper);
                }
            },
            _ => {}
        }
    }

    /// execve(2), "Interpreter scripts": the first word, and for env(1) the program it looks up.
    fn shebang(&self, script: &RootPath, line: &[u8], keeper: &mut Keeper<'_>) {
        let mut words = line.split(|b| matches!(b, b' ' | b'\t')).filter(|w| !w.is_empty());
        let Some(interpreter) = words.next() else { return };
        let reason = || Reason::ShebangOf(script.clone());
        keeper.walk(&RootPath::root(), interpreter, reason());
        if interpreter.rsplit(|b| *b == b'/').next() != Some(b"env") {
            return;
        }
        let plain = |w: &&[u8]| !w.starts_with(b"-") && !w.contains(&b'=');
        let Some(program) = words.find(plain) else { return };
        if program.contains(&b'/') {
            keeper.walk(&RootPath::root(), program, reason());
            return;
        }
        if let Some(raw) = self.on_path(keeper.tree, program) {
            keeper.walk(&RootPath::root(), &raw, reason());
        }
    }

    /// Where PATH finds a program.
    fn on_path(&self, tree: &Tree, program: &[u8]) -> Option<Vec<u8>> {
        let places = self.path.iter().map(|dir| [dir.as_bytes(), b"/", program].concat());
        places.into_iter().find(|raw| is_file(tree, raw))
    }

    /// The DT_NEEDED closure of one object, searched as ld.so(8) does.
    fn libraries(&self, root: &RootPath, keeper: &mut Keeper<'_>) {
        let tree = keeper.tree;
        let mut todo = vec![Object { path: root.clone(), inherited: Vec::new() }];
        let mut seen = BTreeSet::from([root.clone()]);
        while let Some(object) = todo.pop() {
            let Some(elf) = elf(tree, &object.path) else { continue };
            let own: Vec<Vec<u8>> = match elf.runpath.is_empty() {
                true => elf.rpath.iter().flat_map(|d| expand(d, &object.path, elf)).collect(),
                false => Vec::new(),
            };
            let inherited = [own, object.inherited.clone()].concat();
            for name in &elf.needed {
                let Some(raw) = self.find(tree, name, elf, &object.path, &inherited) else {
                    continue;
                };
                let reason = Reason::NeededBy(object.path.clone());
                let Some(path) = keeper.walk(&RootPath::root(), &raw, reason) else { continue };
                if seen.insert(path.clone()) {
                    todo.push(Object { path, inherited: inherited.clone() });
                }
            }
        }
    }

    /// The path under which a library is found; `None` if it is nowhere, or only in several places
    /// that no rule names.
    fn find(
        &self,
        tree: &Tree,
        name: &str,
        wanted: &ElfFacts,
        by: &RootPath,
        inherited: &[Vec<u8>],
    ) -> Option<Vec<u8>> {
        let fits = |raw: &Vec<u8>| {
            let end = tree.resolve(&RootPath::root(), &RootPath::root(), raw, true);
            end.and_then(|end| elf(tree, &end.path))
                .is_some_and(|found| (found.class, found.machine) == (wanted.class, wanted.machine))
        };
        if name.contains('/') {
            return expand(name, by, wanted).into_iter().find(fits);
        }
        let library_path = self.library_path.iter().flat_map(|dir| expand(dir, by, wanted));
        let runpath = wanted.runpath.iter().flat_map(|dir| expand(dir, by, wanted));
        let default = default_dirs(wanted);
        // RPATH counts for an object that has no RUNPATH, its loaders' RPATH too.
        let rpath: &[Vec<u8>] = if wanted.runpath.is_empty() { inherited } else { &[] };
        let dirs: Vec<Vec<u8>> =
            rpath.iter().cloned().chain(library_path).chain(runpath).chain(default).collect();
        let plain = dirs.iter().map(|dir| [dir, &b"/"[..], name.as_bytes()].concat()).find(fits);
        plain.or_else(|| {
            // What ld.so.cache knows beyond these directories.
            let named = tree.nodes.keys().filter(|p| p.file_name() == name.as_bytes());
            let named = named.filter(|path| plain_name(path).is_none());
            let mut named = named.map(|p| p.as_bytes().to_vec()).filter(fits);
            match (named.next(), named.next()) {
                (Some(only), None) => Some(only),
                _ => None,
            }
        })
    }
}

/// Folders for processors that can do more, as glibc before 2.37 had them, one in another
/// ("Legacy hwcaps", ld.so(8)).
const LEGACY_HWCAPS: [&[u8]; 7] =
    [b"tls", b"haswell", b"xeon_phi", b"avx512_1", b"x86_64", b"i686", b"sse2"];

/// The name that any processor's loader looks for, of one that only some look for before: a library in
/// `glibc-hwcaps/LEVEL` (glibc 2.33) or in a legacy folder. A recording knows one processor.
pub fn plain_name(path: &RootPath) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = path.as_bytes().split(|b| *b == b'/').collect();
    let name = parts.pop()?;
    match parts[..] {
        [.., b"glibc-hwcaps", _] => parts.truncate(parts.len() - 2),
        [.., last] if LEGACY_HWCAPS.contains(&last) => {
            while parts.last().is_some_and(|last| LEGACY_HWCAPS.contains(last)) {
                parts.pop();
            }
        }
        _ => return None,
    }
    parts.push(name);
    Some(parts.join(&b'/'))
}

/// The file that `word` starts in a container of this configuration; `None` if the tree has none.
pub fn program(word: &str, tree: &Tree, config: &ImageConfig) -> Option<RootPath> {
    let raw = match word.contains('/') {
        true => Some(word.as_bytes().to_vec()),
        false => Search::new(config).on_path(tree, word.as_bytes()),
    };
    let cwd = RootPath::parse(config.workdir().unwrap_or("/").as_bytes())?;
    let end = tree.resolve(&RootPath::root(), &cwd, &raw?, true)?;
    end.exists.then_some(end.path)
}

fn elf<'a>(tree: &'a Tree, path: &RootPath) -> Option<&'a ElfFacts> {
    match &tree.get(path)?.kind {
        NodeKind::File { facts: Some(facts), .. } => match facts.as_ref() {
            Facts::Elf(elf) => Some(elf),
            Facts::Shebang { .. } => None,
        },
        _ => None,
    }
}

fn is_file(tree: &Tree, raw: &[u8]) -> bool {
    let end = tree.resolve(&RootPath::root(), &RootPath::root(), raw, true);
    let node = end.as_ref().and_then(|end| tree.get(&end.path));
    node.is_some_and(|node| matches!(node.kind, NodeKind::File { .. }))
}

/// Replaces `$ORIGIN`, `$LIB` and `$PLATFORM` (ld.so(8), "Dynamic string tokens"). `$LIB` depends on
/// how libc was built: all the forms in use are tried.
fn expand(dir: &str, by: &RootPath, elf: &ElfFacts) -> Vec<Vec<u8>> {
    let platform = triplet(elf).split('-').next().unwrap_or_default();
    let origin = by.parent().unwrap_or_else(RootPath::root);
    let put = |raw: &[u8], token: &str, value: &[u8]| {
        let braced = format!("${{{token}}}");
        let raw = replace(raw, braced.as_bytes(), value);
        replace(&raw, format!("${token}").as_bytes(), value)
    };
    let base = put(dir.as_bytes(), "ORIGIN", origin.as_bytes());
    let base = put(&base, "PLATFORM", platform.as_bytes());
    let forms = ["lib64", "lib", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu"];
    let mut found: Vec<Vec<u8>> =
        forms.iter().map(|lib| put(&base, "LIB", lib.as_bytes())).collect();
    found.dedup();
    found
}

fn replace(raw: &[u8], token: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.windows(token.len()).position(|w| w == token) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(value);
        rest = &rest[at + token.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// Debian's multiarch name. `e_machine`: 62 x86-64, 3 i386, 183 AArch64, 40 ARM (ELF gABI).
fn triplet(elf: &ElfFacts) -> &'static str {
    match elf.machine {
        62 if elf.class == 32 => "x86_64-linux-gnux32",
        62 => "x86_64-linux-gnu",
        3 => "i386-linux-gnu",
        183 => "aarch64-linux-gnu",
        40 => "arm-linux-gnueabihf",
        _ => "",
    }
}

/// The directories that ld.so.cache is made from on the usual distributions, then the loader's own:
/// multiarch (Debian), lib64 (Fedora, SUSE), lib (musl, 32 bit).
fn default_dirs(elf: &ElfFacts) -> Vec<Vec<u8>> {
    let multiarch = ["/usr/local/lib/", "/lib/", "/usr/lib/"];
    let plain =
        ["/usr/local/lib", "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/lib32", "/usr/lib32"];
    let multiarch = multiarch.map(|dir| format!("{dir}{}", triplet(elf)));
    let plain = plain.map(str::to_owned);
    multiarch.into_iter().chain(plain).map(String::into_bytes).collect()
}
