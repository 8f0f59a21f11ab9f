//! Classic BPF as seccomp(2) takes it: checked once, then run without a way to fail or to go on for ever. What is allowed,
//! and what is not, is Linux's (kernel/seccomp.c: seccomp_check_filter; net/core/filter.c: bpf_check_classic).

use drupe_appkernel_abi::{Errno, Result};

/// BPF_MAXINSNS.
pub const MAX_INSTRUCTIONS: usize = 4096;
/// What a filter sees, struct seccomp_data, as words: number, architecture, instruction pointer, six arguments.
pub const WORDS: usize = 16;
pub type Words = [u32; WORDS];

const CELLS: usize = 16;
const DATA_BYTES: u32 = 4 * WORDS as u32;
const INSTRUCTION_BYTES: usize = 8;
/// The words that are the same for every call of one number: number and architecture.
const CONSTANT_WORDS: u32 = 2;

// linux/bpf_common.h: classes, sizes, modes, operations, where an operand comes from.
const LD: u16 = 0x00;
const LDX: u16 = 0x01;
const ST: u16 = 0x02;
const STX: u16 = 0x03;
const ALU: u16 = 0x04;
const JMP: u16 = 0x05;
const RET: u16 = 0x06;
const MISC: u16 = 0x07;
const ABS: u16 = 0x20;
const MEM: u16 = 0x60;
const LEN: u16 = 0x80;
const FROM_X: u16 = 0x08;
const FROM_A: u16 = 0x10;
const JA: u16 = JMP;
const TXA: u16 = MISC | 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Add,
    Sub,
    Mul,
    Div,
    Or,
    And,
    Lsh,
    Rsh,
    Xor,
    Neg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Equal,
    Greater,
    GreaterOrEqual,
    Set,
}

/// One instruction, taken apart. A register is the accumulator, or X.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Instruction {
    /// A word of the data; only into the accumulator.
    Load(u32),
    Constant {
        x: bool,
        value: u32,
    },
    FromCell {
        x: bool,
        cell: usize,
    },
    ToCell {
        x: bool,
        cell: usize,
    },
    Compute {
        operation: Operation,
        operand: Option<u32>,
    },
    Jump(u32),
    Branch {
        test: Test,
        operand: Option<u32>,
        yes: u8,
        no: u8,
    },
    Return(Option<u32>),
    ToX,
    ToA,
}

/// A program that was checked.
#[derive(Debug)]
pub struct Program(Box<[Instruction]>, Box<[u8]>);

/// What a program says of a call; `by_number`: it would say the same of every call of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    pub verdict: u32,
    pub by_number: bool,
}

fn computation(code: u16, k: u32) -> Result<Instruction> {
    let operation = match code & 0xf0 {
        0x00 => Operation::Add,
        0x10 => Operation::Sub,
        0x20 => Operation::Mul,
        0x30 if code & FROM_X != 0 || k != 0 => Operation::Div,
        0x40 => Operation::Or,
        0x50 => Operation::And,
        0x60 if code & FROM_X != 0 || k < 32 => Operation::Lsh,
        0x70 if code & FROM_X != 0 || k < 32 => Operation::Rsh,
        0x80 if code & FROM_X == 0 => Operation::Neg,
        0xa0 => Operation::Xor,
        _ => return Err(Errno::INVAL),
    };
    Ok(Instruction::Compute { operation, operand: (code & FROM_X == 0).then_some(k) })
}

fn branch(code: u16, yes: u8, no: u8, k: u32) -> Result<Instruction> {
    let test = match code & 0xf0 {
        0x10 => Test::Equal,
        0x20 => Test::Greater,
        0x30 => Test::GreaterOrEqual,
        0x40 => Test::Set,
        _ => return Err(Errno::INVAL),
    };
    Ok(Instruction::Branch { test, operand: (code & FROM_X == 0).then_some(k), yes, no })
}

fn cell(k: u32) -> Result<usize> {
    Some(k as usize).filter(|at| *at < CELLS).ok_or(Errno::INVAL)
}

fn decode(bytes: &[u8]) -> Result<Instruction> {
    let [c0, c1, yes, no, k0, k1, k2, k3] = *bytes else { return Err(Errno::INVAL) };
    let (code, k) = (u16::from_le_bytes([c0, c1]), u32::from_le_bytes([k0, k1, k2, k3]));
    if code > 0xff {
        return Err(Errno::INVAL);
    }
    let class = code & 0x07;
    let x = class == LDX || class == STX;
    match (class, code & !0x07) {
        (LD, ABS) if k < DATA_BYTES && k % 4 == 0 => Ok(Instruction::Load(k / 4)),
        (LD | LDX, LEN) => Ok(Instruction::Constant { x, value: DATA_BYTES }),
        (LD | LDX, 0) => Ok(Instruction::Constant { x, value: k }),
        (LD | LDX, MEM) => Ok(Instruction::FromCell { x, cell: cell(k)? }),
        (ST | STX, 0) => Ok(Instruction::ToCell { x, cell: cell(k)? }),
        (ALU, _) => computation(code, k),
        (JMP, _) if code == JA => Ok(Instruction::Jump(k)),
        (JMP, _) => branch(code, yes, no, k),
        (RET, 0) => Ok(Instruction::Return(Some(k))),
        (RET, FROM_A) => Ok(Instruction::Return(None)),
        (MISC, 0) => Ok(Instruction::ToX),
        (MISC, _) if code == TXA => Ok(Instruction::ToA),
        _ => Err(Errno::INVAL),
    }
}

/// Where an instruction at `at` may go on, none of them back.
fn targets(instruction: Instruction, at: usize) -> [Option<usize>; 2] {
    match instruction {
        Instruction::Return(_) => [None, None],
        Instruction::Jump(k) => [at.checked_add(k as usize + 1), None],
        Instruction::Branch { yes, no, .. } => [Some(at + 1 + yes as usize), Some(at + 1 + no as usize)],
        _ => [Some(at + 1), None],
    }
}

/// Every way ends in a return, and reads no cell that was not written on it.
fn check(program: &[Instruction]) -> Result<()> {
    let mut written: Vec<u32> = vec![u32::MAX; program.len()];
    if let Some(first) = written.first_mut() {
        *first = 0;
    }
    for (at, &instruction) in program.iter().enumerate() {
        let mut cells = written[at];
        match instruction {
            Instruction::ToCell { cell, .. } => cells |= 1 << cell,
            Instruction::FromCell { cell, .. } if cells & 1 << cell == 0 => return Err(Errno::INVAL),
            _ => {}
        }
        for target in targets(instruction, at).into_iter().flatten() {
            *written.get_mut(target).ok_or(Errno::INVAL)? &= cells;
        }
    }
    Ok(())
}

impl Program {
    /// A program as user memory has it, struct sock_filter after struct sock_filter. EINVAL.
    pub fn parse(bytes: &[u8]) -> Result<Program> {
        let count = bytes.len() / INSTRUCTION_BYTES;
        if count == 0 || count > MAX_INSTRUCTIONS || bytes.len() % INSTRUCTION_BYTES != 0 {
            return Err(Errno::INVAL);
        }
        let program = bytes.chunks_exact(INSTRUCTION_BYTES).map(decode).collect::<Result<Box<[_]>>>()?;
        check(&program)?;
        match program.last() {
            Some(Instruction::Return(_)) => Ok(Program(program, bytes.into())),
            _ => Err(Errno::INVAL),
        }
    }

    /// As `parse` took it.
    pub fn bytes(&self) -> &[u8] {
        &self.1
    }

    pub fn size(&self) -> usize {
        self.0.len()
    }

    /// Whether it looks at the instruction pointer, which is not at hand.
    pub fn asks_where(&self) -> bool {
        self.0.iter().any(|one| matches!(one, Instruction::Load(2 | 3)))
    }

    pub fn run(&self, words: &Words) -> Said {
        let (mut a, mut x, mut cells, mut at) = (0u32, 0u32, [0u32; CELLS], 0usize);
        let mut by_number = true;
        // It ends, for each step goes forward; what leaves the program, though `check` knows none, kills.
        while let Some(&instruction) = self.0.get(at) {
            at += 1;
            match instruction {
                Instruction::Load(word) => {
                    by_number &= word < CONSTANT_WORDS;
                    a = words.get(word as usize).copied().unwrap_or(0);
                }
                Instruction::Constant { x: true, value } => x = value,
                Instruction::Constant { value, .. } => a = value,
                Instruction::FromCell { x: true, cell } => x = cells[cell],
                Instruction::FromCell { cell, .. } => a = cells[cell],
                Instruction::ToCell { x: from_x, cell } => cells[cell] = if from_x { x } else { a },
                Instruction::Compute { operation: Operation::Div, operand } if operand.unwrap_or(x) == 0 => break,
                Instruction::Compute { operation, operand } => a = compute(operation, a, operand.unwrap_or(x)),
                Instruction::Jump(k) => at = at.saturating_add(k as usize),
                Instruction::Branch { test, operand, yes, no } => {
                    at += usize::from(if holds(test, a, operand.unwrap_or(x)) { yes } else { no });
                }
                Instruction::Return(value) => return Said { verdict: value.unwrap_or(a), by_number },
                Instruction::ToX => x = a,
                Instruction::ToA => a = x,
            }
        }
        Said { verdict: 0, by_number }
    }
}

fn compute(operation: Operation, a: u32, operand: u32) -> u32 {
    match operation {
        Operation::Add => a.wrapping_add(operand),
        Operation::Sub => a.wrapping_sub(operand),
        Operation::Mul => a.wrapping_mul(operand),
        Operation::Div => a.checked_div(operand).unwrap_or(0),
        Operation::Or => a | operand,
        Operation::And => a & operand,
        Operation::Lsh => a.wrapping_shl(operand),
        Operation::Rsh => a.wrapping_shr(operand),
        Operation::Xor => a ^ operand,
        Operation::Neg => a.wrapping_neg(),
    }
}

fn holds(test: Test, a: u32, operand: u32) -> bool {
    match test {
        Test::Equal => a == operand,
        Test::Greater => a > operand,
        Test::GreaterOrEqual => a >= operand,
        Test::Set => a & operand != 0,
    }
}
