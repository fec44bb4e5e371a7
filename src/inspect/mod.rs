//! Bytes into facts: ELF headers, `#!` lines.

use object::elf;
use object::read::elf::{Dyn as _, FileHeader, ProgramHeader as _};
use object::{Endianness, FileKind};

use crate::model::{ElfFacts, Facts, escape};

/// What the content of a file says about other files it needs; `None` for plain data and for
/// anything malformed.
pub fn facts(content: &[u8]) -> Option<Facts> {
    if content.starts_with(b"#!") {
        return shebang(content);
    }
    if !content.starts_with(b"\x7fELF") {
        return None;
    }
    match FileKind::parse(content).ok()? {
        FileKind::Elf32 => elf_facts::<elf::FileHeader32<Endianness>>(content, 32),
        FileKind::Elf64 => elf_facts::<elf::FileHeader64<Endianness>>(content, 64),
        _ => None,
    }
    .map(Facts::Elf)
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

fn elf_facts<H: FileHeader<Endian = Endianness>>(data: &[u8], class: u8) -> Option<ElfFacts> {
    let header = H::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let mut facts = ElfFacts { class, machine: header.e_machine(endian).0, ..ElfFacts::default() };
    let segments = header.program_headers(endian, data).ok()?;
    for segment in segments {
        if let Ok(Some(raw)) = segment.interpreter(endian, data) {
            facts.interpreter = Some(raw.to_vec());
        }
    }
    dynamic::<H>(&mut facts, data, endian, segments);
    Some(facts)
}

/// Reads the dynamic section by its segment, as the loader does: section headers may be stripped.
fn dynamic<H: FileHeader<Endian = Endianness>>(
    facts: &mut ElfFacts,
    data: &[u8],
    endian: Endianness,
    segments: &[H::ProgramHeader],
) -> Option<()> {
    let entries = segments.iter().find_map(|s| s.dynamic(endian, data).ok().flatten())?;
    let value = |tag: elf::DynamicTag| {
        let entry = entries.iter().find(|d| d.tag(endian) == tag);
        entry.map(|d| d.val(endian))
    };
    let (at, size): (u64, u64) = (value(elf::DT_STRTAB)?, value(elf::DT_STRSZ)?);
    let strings = segments
        .iter()
        .filter(|s| s.p_type(endian) == elf::PT_LOAD)
        .find_map(|s| s.data_range(endian, data, at, size).ok().flatten())?;
    let text = |offset: u64| {
        let tail = strings.get(usize::try_from(offset).ok()?..)?;
        Some(escape(tail.split(|b| *b == 0).next()?))
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
        let Some(Facts::Elf(elf)) = facts(&own) else { panic!("no facts") };
        assert!(elf.needed.iter().any(|n| n.starts_with("libc.so")), "{:?}", elf.needed);
        assert!(elf.interpreter.is_some_and(|i| i.starts_with(b"/lib")));
    }

    #[test]
    fn damage_never_panics() {
        let own = std::fs::read("/bin/true").unwrap();
        for len in (0..own.len()).step_by(97) {
            let _ = facts(&own[..len]);
        }
        let mut broken = own.clone();
        for at in (0..2048.min(own.len())).step_by(3) {
            broken[at] ^= 0xff;
            let _ = facts(&broken);
        }
    }
}
