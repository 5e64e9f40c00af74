//! What an ELF of BPF programs holds, without loading it, and what of it is shipped.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind,
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

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

/// The ELF without DWARF, which is most of its size and which no loader reads. BTF stays, and with
/// it the source lines in the verifier's log.
pub fn without_dwarf(elf: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(elf).context("not an ELF file")?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    // LLVM keeps the names of sections and symbols in one table; the writer wants two.
    if !builder
        .sections
        .iter()
        .any(|section| matches!(section.data, SectionData::SectionString))
    {
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    // Symbols and relocations of what is gone.
    builder.delete_orphans();
    let mut stripped = Vec::new();
    builder
        .write(&mut stripped)
        .context("cannot write the ELF without DWARF")?;
    Ok(stripped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripping_leaves_code_and_removes_dwarf() {
        let mut builder = Builder::new(object::Endianness::Little, true);
        for name in ["classifier", ".debug_info", ".rel.debug_info", ".BTF"] {
            let section = builder.sections.add();
            section.name = name.as_bytes().into();
            section.sh_type = object::elf::SHT_PROGBITS;
            section.data = SectionData::Data(b"12345678".as_slice().into());
        }
        let names = builder.sections.add();
        names.name = ".shstrtab".into();
        names.sh_type = SHT_STRTAB;
        names.data = SectionData::SectionString;
        builder.set_section_sizes();
        let mut elf = Vec::new();
        builder.write(&mut elf).expect("a small ELF");

        let stripped = without_dwarf(&elf).expect("it can be read again");
        let file = object::File::parse(&*stripped).expect("still an ELF");
        assert!(file.section_by_name("classifier").is_some());
        assert!(file.section_by_name(".BTF").is_some());
        assert!(file.section_by_name(".debug_info").is_none());
        assert!(file.section_by_name(".rel.debug_info").is_none());
    }

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
