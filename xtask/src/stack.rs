//! The stack that programs need, with all that they call, as old kernels count it.
//!
//! A chain of calls has 512 bytes. Kernels before 6.8 round each frame up to 32 bytes
//! (`check_max_stack_depth` in the kernel's verifier), newer ones to 16 where they compile programs: so
//! what loads on a new kernel may not load on 5.10. The ELF tells without one.
//!
//! A frame is as deep as the lowest address below the frame pointer that the function's instructions
//! name. The verifier counts less where it walks less than all of them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionKind, SymbolKind,
};

/// Bytes for a chain of calls.
pub const LIMIT: u64 = 512;

/// What a frame is rounded up to, and what an empty one takes.
const ROUNDING: u64 = 32;

/// Bytes of one BPF instruction.
const INSTRUCTION: usize = 8;

/// The frame pointer.
const R10: u8 = 10;

/// The deepest chain of calls of a program.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    /// Bytes, rounded as old kernels do.
    pub bytes: u64,
    /// The functions from the program on, each with the bytes of its own frame.
    pub frames: Vec<(String, u64)>,
}

/// Where a function is: section and offset.
type Place = (usize, u64);

struct Function {
    name: String,
    is_program: bool,
    frame: u64,
    calls: BTreeSet<Place>,
}

/// The deepest chain of each program of the ELF, the deepest first.
pub fn chains(elf: &[u8]) -> Result<Vec<Chain>> {
    let functions = functions(elf)?;
    let mut chains = Vec::new();
    for (place, function) in &functions {
        if function.is_program {
            chains.push(deepest(&functions, *place, &mut Vec::new())?);
        }
    }
    chains.sort_by_key(|chain| std::cmp::Reverse(chain.bytes));
    Ok(chains)
}

fn deepest(
    functions: &BTreeMap<Place, Function>,
    place: Place,
    callers: &mut Vec<Place>,
) -> Result<Chain> {
    let function = functions
        .get(&place)
        .context("a call leads to no function")?;
    ensure!(
        !callers.contains(&place),
        "{} calls itself, which no kernel takes",
        function.name
    );
    callers.push(place);
    let mut below = Chain {
        bytes: 0,
        frames: Vec::new(),
    };
    for callee in &function.calls {
        let chain = deepest(functions, *callee, callers)?;
        if chain.bytes > below.bytes {
            below = chain;
        }
    }
    callers.pop();
    below.bytes += function.frame.max(1).next_multiple_of(ROUNDING);
    below
        .frames
        .insert(0, (function.name.clone(), function.frame));
    Ok(below)
}

fn functions(elf: &[u8]) -> Result<BTreeMap<Place, Function>> {
    let file = object::File::parse(elf).context("not an ELF file")?;
    let mut functions = BTreeMap::new();
    for symbol in file.symbols() {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let section = file.section_by_index(index)?;
        if symbol.kind() != SymbolKind::Text
            || section.kind() != SectionKind::Text
            || symbol.size() == 0
        {
            continue;
        }
        let code = section
            .data_range(symbol.address(), symbol.size())?
            .context("a function lies outside of its section")?;
        // What the loader fills in: calls into another section, and some within one.
        let mut targets = BTreeMap::new();
        for (offset, relocation) in section.relocations() {
            if let RelocationTarget::Symbol(target) = relocation.target() {
                targets.insert(offset, file.symbol_by_index(target)?);
            }
        }
        let mut calls = BTreeSet::new();
        for (position, instruction) in (symbol.address()..)
            .step_by(INSTRUCTION)
            .zip(code.chunks_exact(INSTRUCTION).map(Instruction::read))
        {
            if !instruction.is_call() {
                continue;
            }
            let place = match targets.get(&position) {
                Some(target) if target.kind() == SymbolKind::Section => (
                    target.section_index().context("no section")?.0,
                    instruction.relative_to(0),
                ),
                Some(target) => (
                    target.section_index().context("no section")?.0,
                    target.address(),
                ),
                None => (index.0, instruction.relative_to(position)),
            };
            calls.insert(place);
        }
        let function = Function {
            name: symbol.name()?.to_owned(),
            is_program: section.name()? != ".text",
            frame: frame(code),
            calls,
        };
        functions.insert((index.0, symbol.address()), function);
    }
    Ok(functions)
}

/// An instruction, as `struct bpf_insn`.
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// Reads eight bytes.
    fn read(bytes: &[u8]) -> Self {
        Self {
            code: bytes[0],
            destination: bytes[1] & 15,
            source: bytes[1] >> 4,
            offset: i16::from_le_bytes([bytes[2], bytes[3]]),
            immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    /// A call of a function of the ELF (`BPF_PSEUDO_CALL`), not of a helper.
    fn is_call(self) -> bool {
        self.code == 0x85 && self.source == 1
    }

    /// Where the call leads that stands at `position`: as many instructions after the next one.
    fn relative_to(self, position: u64) -> u64 {
        let distance = (i64::from(self.immediate) + 1) * INSTRUCTION as i64;
        position.wrapping_add_signed(distance)
    }
}

/// Bytes of the function's own frame.
fn frame(code: &[u8]) -> u64 {
    let mut lowest = 0;
    let mut copied_to = None;
    for instruction in code.chunks_exact(INSTRUCTION).map(Instruction::read) {
        // The instruction's class: loads from memory, stores of a number or a register.
        let named = match instruction.code & 7 {
            1 if instruction.source == R10 => i32::from(instruction.offset),
            2 | 3 if instruction.destination == R10 => i32::from(instruction.offset),
            // An address: the frame pointer copied, and then a number added.
            7 if instruction.code == 0x07 && copied_to == Some(instruction.destination) => {
                instruction.immediate
            }
            _ => 0,
        };
        lowest = lowest.min(named);
        copied_to = (instruction.code == 0xbf && instruction.source == R10)
            .then_some(instruction.destination);
    }
    lowest.unsigned_abs().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, is_program: bool, frame: u64, calls: &[u64]) -> Function {
        Function {
            name: name.to_owned(),
            is_program,
            frame,
            calls: calls.iter().map(|offset| (1, *offset)).collect(),
        }
    }

    #[test]
    fn the_deepest_chain_counts_each_frame_rounded() {
        let functions = BTreeMap::from([
            ((0, 0), function("program", true, 16, &[0, 8])),
            ((1, 0), function("long", false, 0, &[16])),
            ((1, 8), function("deep", false, 40, &[])),
            ((1, 16), function("leaf", false, 33, &[])),
        ]);
        let chain = deepest(&functions, (0, 0), &mut Vec::new()).expect("no recursion");
        assert_eq!(chain.bytes, 32 + 32 + 64);
        let names: Vec<&str> = chain.frames.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["program", "long", "leaf"]);
    }

    #[test]
    fn a_function_that_calls_itself_is_refused() {
        let functions = BTreeMap::from([((1, 0), function("f", true, 0, &[0]))]);
        let error = deepest(&functions, (1, 0), &mut Vec::new()).expect_err("endless");
        assert!(error.to_string().contains("f calls itself"), "{error}");
    }

    #[test]
    fn a_frame_is_what_instructions_name() {
        // *(u64 *)(r10 - 24) = r1; r2 = r10; r2 += -40; r3 += -100
        let code = [
            [0x7b, 0x1a, 0xe8, 0xff, 0, 0, 0, 0],
            [0xbf, 0xa2, 0, 0, 0, 0, 0, 0],
            [0x07, 0x02, 0, 0, 0xd8, 0xff, 0xff, 0xff],
            [0x07, 0x03, 0, 0, 0x9c, 0xff, 0xff, 0xff],
        ];
        assert_eq!(frame(code.as_flattened()), 40);
    }

    #[test]
    fn calls_are_relative_to_what_follows() {
        let call = Instruction::read(&[0x85, 0x10, 0, 0, 2, 0, 0, 0]);
        assert!(call.is_call());
        assert_eq!(call.relative_to(16), 40);
        let back = Instruction::read(&[0x85, 0x10, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(back.relative_to(16), 16);
    }
}
