//! Bytes into facts: ELF headers, `#!` lines.

use std::io::{Read, Seek};
use std::ops::Range;

use object::elf;
use object::read::elf::{Dyn as _, FileHeader, ProgramHeader as _};
use object::{Endianness, FileKind, ReadCache, ReadRef};

use crate::model::{ElfFacts, Facts, escape};

/// The most that is read of a file in one piece: headers, or the dynamic section. The kernel takes 64 KiB
/// of program headers (execve(2)), and the dynamic sections of real programs have a few.
const PIECE: u64 = 256 << 10;

/// What the content of a file says about other files it needs; `None` for plain data and for
/// anything malformed.
pub fn facts(content: &[u8]) -> Option<Facts> {
    if content.starts_with(b"#!") {
        return shebang(content);
    }
    elf(Pieces(content))
}

/// The facts in a program, of which only the pieces that hold them are read.
pub fn facts_of_program(file: impl Read + Seek) -> Option<Facts> {
    elf(Pieces(&ReadCache::new(file)))
}

fn elf<'a>(data: Pieces<impl ReadRef<'a>>) -> Option<Facts> {
    match FileKind::parse(data).ok()? {
        FileKind::Elf32 => elf_facts::<elf::FileHeader32<Endianness>, _>(data, 32),
        FileKind::Elf64 => elf_facts::<elf::FileHeader64<Endianness>, _>(data, 64),
        _ => None,
    }
    .map(Facts::Elf)
}

/// Content of which no piece is read that is larger than [`PIECE`], whatever its headers say.
#[derive(Clone, Copy)]
struct Pieces<R>(R);

impl<'a, R: ReadRef<'a>> ReadRef<'a> for Pieces<R> {
    fn len(self) -> Result<u64, ()> {
        self.0.len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'a [u8], ()> {
        if size > PIECE { Err(()) } else { self.0.read_bytes_at(offset, size) }
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'a [u8], ()> {
        let end = range.end.min(range.start.saturating_add(PIECE));
        self.0.read_bytes_at_until(range.start..end, delimiter)
    }
}

/// True if the first bytes of a file (four are enough) make it worth looking at whole.
pub fn wants(head: &[u8]) -> bool {
    head.starts_with(b"#!") || head.starts_with(b"\x7fELF")
}

/// The interpreter as the kernel takes it (execve(2), "Interpreter scripts"): blanks skipped, up to
/// a blank, a newline, or the end of what the kernel reads (256 bytes since Linux 5.1).
fn shebang(content: &[u8]) -> Option<Facts> {
    let line = &content[2..content.len().min(256)];
    let line = line.split(|b| *b == b'\n' || *b == 0).next()?;
    let line = line.trim_ascii_start();
    let interpreter = line.split(|b| matches!(b, b' ' | b'\t')).next()?.trim_ascii_end();
    (!interpreter.is_empty()).then(|| Facts::Shebang { interpreter: interpreter.to_vec() })
}

fn elf_facts<'a, H, R>(data: R, class: u8) -> Option<ElfFacts>
where
    H: FileHeader<Endian = Endianness> + 'a,
    R: ReadRef<'a>,
{
    let header = H::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let mut facts = ElfFacts { class, machine: header.e_machine(endian).0, ..ElfFacts::default() };
    let segments = header.program_headers(endian, data).ok()?;
    // the kernel takes the first one
    let interpreter = segments.iter().find(|s| s.p_type(endian) == elf::PT_INTERP);
    if let Some(Ok(Some(raw))) = interpreter.map(|segment| segment.interpreter(endian, data)) {
        facts.interpreter = Some(raw.to_vec());
    }
    dynamic::<H, R>(&mut facts, data, endian, segments);
    Some(facts)
}

/// Reads the dynamic section by its segment, as the loader does: section headers may be stripped.
fn dynamic<'a, H, R>(
    facts: &mut ElfFacts,
    data: R,
    endian: Endianness,
    segments: &[H::ProgramHeader],
) -> Option<()>
where
    H: FileHeader<Endian = Endianness> + 'a,
    R: ReadRef<'a>,
{
    let entries = segments.iter().find_map(|s| s.dynamic(endian, data).ok().flatten())?;
    let value = |tag: elf::DynamicTag| {
        let entry = entries.iter().find(|d| d.tag(endian) == tag);
        entry.map(|d| d.val(endian))
    };
    let (at, size): (u64, u64) = (value(elf::DT_STRTAB)?, value(elf::DT_STRSZ)?);
    let mut loaded = segments.iter().filter(|s| s.p_type(endian) == elf::PT_LOAD);
    let start = loaded.find_map(|segment| {
        let (offset, length) = segment.file_range(endian);
        let into = at.checked_sub(segment.p_vaddr(endian).into())?;
        (into.checked_add(size)? <= length).then_some(offset.checked_add(into)?)
    })?;
    let strings = start..start.checked_add(size)?;
    let text = |offset: u64| {
        let from = strings.start.checked_add(offset)?;
        let text = data.read_bytes_at_until(from..strings.end, 0).ok()?;
        Some(escape(text))
    };
    let split = |offset: u64| {
        let text = text(offset).unwrap_or_default();
        text.split(':').filter(|p| !p.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    for entry in entries {
        let offset: u64 = entry.val(endian);
        match entry.tag(endian) {
            elf::DT_NULL => break,
            elf::DT_NEEDED => facts.needed.extend(text(offset)),
            elf::DT_SONAME => facts.soname = text(offset),
            elf::DT_RPATH => facts.rpath = split(offset),
            elf::DT_RUNPATH => facts.runpath = split(offset),
            _ => {}
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shebang_names_its_interpreter() {
        for (line, want) in [
            ("#!/bin/sh\n", Some("/bin/sh")),
            ("#! /usr/bin/env python3\n", Some("/usr/bin/env")),
            ("#!\t/bin/sh\t-e", Some("/bin/sh")),
            ("#!\n/bin/sh", None),
            ("#", None),
        ] {
            let want = want.map(|i| Facts::Shebang { interpreter: i.as_bytes().to_vec() });
            assert_eq!(facts(line.as_bytes()), want, "{line:?}");
        }
    }

    #[test]
    fn this_program_needs_libc_and_its_loader() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let all = facts(&own);
        assert_eq!(all, facts_of_program(std::io::Cursor::new(&own)));
        let Some(Facts::Elf(elf)) = all else { panic!("no facts") };
        assert!(elf.needed.iter().any(|n| n.starts_with("libc.so")), "{:?}", elf.needed);
        assert!(elf.interpreter.is_some_and(|i| i.starts_with(b"/lib")));
    }

    /// In memory or from a file.
    fn same(content: &[u8]) {
        assert_eq!(facts(content), facts_of_program(std::io::Cursor::new(content)));
    }

    #[test]
    fn damage_never_panics() {
        let own = std::fs::read("/bin/true").unwrap();
        for len in (0..own.len()).step_by(97) {
            same(&own[..len]);
        }
        let mut broken = own.clone();
        for at in (0..2048.min(own.len())).step_by(3) {
            broken[at] ^= 0xff;
            same(&broken);
        }
    }
}
