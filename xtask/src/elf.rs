//! What an ELF of BPF programs holds, without loading it.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind};

/// Bytes of one BPF instruction.
const INSTRUCTION: u64 = 8;

/// A program, or the functions that programs share.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// The symbol's name.
    pub name: String,
    /// The section, which says the program's type to the loader.
    pub section: String,
    /// Instructions in the ELF (a 64-bit immediate load counts as two).
    pub instructions: u64,
}

/// Every program of the ELF by name, and the instructions in functions that programs call
/// (section `.text`).
pub fn programs(path: &Path) -> Result<(Vec<Function>, u64)> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = object::File::parse(&*bytes)
        .with_context(|| format!("{} is not an ELF file", path.display()))?;
    let mut programs = Vec::new();
    let mut shared = 0;
    for symbol in file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text)
    {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let section = file.section_by_index(index)?;
        if section.kind() != SectionKind::Text || symbol.size() == 0 {
            continue;
        }
        let instructions = symbol.size() / INSTRUCTION;
        match section.name()? {
            ".text" => shared += instructions,
            name => programs.push(Function {
                name: symbol.name()?.to_owned(),
                section: name.to_owned(),
                instructions,
            }),
        }
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((programs, shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_elf_is_refused_by_name() {
        let error = programs(Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/Cargo.toml"
        )))
        .expect_err("a manifest is no ELF");
        assert!(
            error.to_string().contains("Cargo.toml is not an ELF file"),
            "{error}"
        );
    }
}
