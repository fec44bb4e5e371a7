//! The frames of the BPF programs fit into the stack that old kernels give them.
//!
//! The verifier adds up the frames along each chain of calls, callbacks of bpf_loop included, and takes no
//! more than 512 bytes and eight frames (`check_max_stack_depth`, kernel/bpf/verifier.c). Until Linux 6.8 it
//! rounds each frame up to 32 bytes, later to 16 where programs are compiled: an object can load on the
//! machine it was written on and not on Debian 12's. So this reads the object and counts as the old ones do.

use std::collections::BTreeMap;
use std::path::Path;

use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind};

/// What the verifier takes, less room for a compiler that spills a little more.
const MOST_BYTES: u64 = 512 - 32;
const MOST_FRAMES: usize = 7;

/// A function by its section and the index of its first instruction there.
type Place = (usize, u64);

struct Function {
    name: String,
    /// Bytes below the frame pointer.
    stack: u64,
    calls: Vec<Place>,
}

#[test]
fn the_deepest_chain_of_calls_fits_into_the_stack_of_old_kernels() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/record/bpf/slim.bpf.o");
    let bytes = std::fs::read(path).unwrap();
    let functions = functions(&object::File::parse(&*bytes).unwrap());
    let programs: Vec<_> = functions.values().filter(|f| f.name.starts_with("slim_")).collect();
    assert_eq!(programs.len(), 13, "programs of the object");
    for program in programs {
        let chain = deepest(&functions, program);
        let bytes = chain.iter().map(|f| rounded(f.stack)).sum::<u64>();
        let told: Vec<_> = chain.iter().map(|f| format!("{} {}", f.name, f.stack)).collect();
        println!("{bytes} bytes: {}", told.join(", "));
        assert!(bytes <= MOST_BYTES, "{bytes} bytes of stack: {}", told.join(", "));
        let frames = most_frames(&functions, program);
        assert!(frames <= MOST_FRAMES, "{} leads to {frames} frames", program.name);
    }
    // the walk found the calls: from a program through a function to a callback
    let exit = functions.values().find(|f| f.name == "slim_exit").unwrap();
    assert!(most_frames(&functions, exit) >= 4);
}

fn rounded(stack: u64) -> u64 {
    stack.max(1).next_multiple_of(32)
}

fn deepest<'a>(all: &'a BTreeMap<Place, Function>, from: &'a Function) -> Vec<&'a Function> {
    let below = from.calls.iter().map(|place| deepest(all, &all[place]));
    let worst = below.max_by_key(|chain| chain.iter().map(|f| rounded(f.stack)).sum::<u64>());
    [from].into_iter().chain(worst.unwrap_or_default()).collect()
}

fn most_frames(all: &BTreeMap<Place, Function>, from: &Function) -> usize {
    1 + from.calls.iter().map(|place| most_frames(all, &all[place])).max().unwrap_or(0)
}

fn functions(file: &object::File<'_>) -> BTreeMap<Place, Function> {
    let mut all = BTreeMap::new();
    for symbol in file.symbols().filter(|s| s.kind() == SymbolKind::Text && s.size() > 0) {
        let section = file.section_by_index(symbol.section_index().unwrap()).unwrap();
        let (first, last) = (symbol.address() / 8, (symbol.address() + symbol.size()) / 8);
        let code: Vec<Instruction> =
            section.data().unwrap().chunks_exact(8).map(Instruction::of).collect();
        let code = &code[first as usize..last as usize];
        let relocations: BTreeMap<_, _> =
            section.relocations().map(|(at, to)| (at / 8, to.target())).collect();
        let to = |(at, code): (u64, &Instruction)| match relocations.get(&at) {
            Some(RelocationTarget::Symbol(index)) => {
                code.relocated(file, &file.symbol_by_index(*index).unwrap())
            }
            // within the section: the distance from the next one
            _ if code.is_call() => {
                Some((section.index().0, (at + 1).strict_add_signed(code.immediate.into())))
            }
            _ => None,
        };
        let calls = (first..).zip(code).filter_map(to).collect();
        let name = symbol.name().unwrap().to_owned();
        let function = Function { name, stack: stack_of(code), calls };
        all.insert((section.index().0, first), function);
    }
    all
}

/// `struct bpf_insn` of linux/bpf.h.
struct Instruction {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

const FRAME_POINTER: u8 = 10;

impl Instruction {
    fn of(raw: &[u8]) -> Self {
        Self {
            code: raw[0],
            destination: raw[1] & 15,
            source: raw[1] >> 4,
            offset: i16::from_le_bytes([raw[2], raw[3]]),
            immediate: i32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]),
        }
    }

    /// BPF_PSEUDO_CALL: of a function of the object, not of a helper.
    fn is_call(&self) -> bool {
        self.code == 0x85 && self.source == 1
    }

    /// The function that a relocation makes this instruction call, or take as a callback. Static ones
    /// are named by their section's symbol and what is in the instruction: for a call the distance from
    /// the next one, for an address bytes.
    fn relocated<'a>(&self, file: &object::File<'a>, to: &impl ObjectSymbol<'a>) -> Option<Place> {
        let section = file.section_by_index(to.section_index()?).ok()?;
        if section.kind() != object::SectionKind::Text {
            return None; // a map
        }
        let more = match self.code {
            0x85 => i64::from(self.immediate) + 1,
            0x18 => i64::from(self.immediate) / 8,
            _ => return None,
        };
        Some((section.index().0, (to.address() / 8).checked_add_signed(more)?))
    }
}

/// The lowest byte that a function reaches from its frame pointer: by a load or a store, or by an address
/// that it makes.
fn stack_of(code: &[Instruction]) -> u64 {
    let mut lowest = 0i64;
    let mut copies = [false; 16];
    for i in code {
        let class = i.code & 7;
        match class {
            1 if i.source == FRAME_POINTER => lowest = lowest.min(i.offset.into()),
            2 | 3 if i.destination == FRAME_POINTER => lowest = lowest.min(i.offset.into()),
            _ => {}
        }
        match i.code {
            0xbf => copies[usize::from(i.destination)] = i.source == FRAME_POINTER,
            0x07 if copies[usize::from(i.destination)] => {
                lowest = lowest.min(i.immediate.into());
                copies[usize::from(i.destination)] = false;
            }
            _ => {}
        }
    }
    lowest.unsigned_abs()
}
