//! Tables of styled cells, drawn with box characters.

use super::terminal::{Style, Terminal};

/// A cell: what it says, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell.
    pub fn new(style: Style, text: impl Into<String>) -> Self {
        Cell {
            text: text.into(),
            style,
        }
    }

    /// A cell of ordinary text.
    pub fn plain(text: impl Into<String>) -> Self {
        Cell::new(Style::Plain, text)
    }

    fn width(&self) -> usize {
        width(&self.text)
    }
}

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// At the left.
    Left,
    /// In the middle.
    Centre,
    /// At the right.
    Right,
}

/// A table. Every line and every header line has a cell for each column.
#[derive(Clone, Debug, Default)]
pub struct Table {
    columns: Vec<Align>,
    /// Names over neighbouring columns, each with how many of them; bars separate the groups.
    groups: Vec<(String, usize)>,
    header: Vec<Vec<Cell>>,
    lines: Vec<Vec<Cell>>,
}

impl Table {
    /// A table of these columns; without groups there is one nameless group of all of them.
    pub fn new(columns: Vec<Align>) -> Self {
        Table {
            groups: vec![(String::new(), columns.len())],
            columns,
            ..Table::default()
        }
    }

    /// Divides the columns into named groups.
    pub fn grouped(mut self, groups: Vec<(String, usize)>) -> Self {
        self.groups = groups;
        self
    }

    /// Adds a line above the rule.
    pub fn header(&mut self, texts: impl IntoIterator<Item = impl Into<String>>) {
        self.header.push(
            texts
                .into_iter()
                .map(|text| Cell::new(Style::Strong, text))
                .collect(),
        );
    }

    /// Adds a line below the rule.
    pub fn line(&mut self, cells: Vec<Cell>) {
        self.lines.push(cells);
    }

    /// Draws the table, each line with a line break.
    pub fn render(&self, terminal: Terminal) -> String {
        let widths = self.widths();
        let mut drawn = self.rule(&widths, ['╭', '┬', '╮']);
        if self.groups.iter().any(|(name, _)| !name.is_empty()) {
            drawn.push_str(&self.group_names(terminal, &widths));
        }
        for line in &self.header {
            drawn.push_str(&self.draw(terminal, &widths, line));
        }
        if !self.header.is_empty() {
            drawn.push_str(&self.rule(&widths, ['├', '┼', '┤']));
        }
        for line in &self.lines {
            drawn.push_str(&self.draw(terminal, &widths, line));
        }
        drawn + &self.rule(&widths, ['╰', '┴', '╯'])
    }

    /// Each column's width; the last of a group is widened when the group's name needs it.
    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                let lines = self.header.iter().chain(&self.lines);
                lines
                    .filter_map(|line| line.get(column))
                    .map(Cell::width)
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut start = 0;
        for (name, count) in &self.groups {
            let end = start + count;
            let missing = width(name).saturating_sub(span(&widths[start..end]));
            if let Some(last) = widths[start..end].last_mut() {
                *last += missing;
            }
            start = end;
        }
        widths
    }

    fn rule(&self, widths: &[usize], [left, middle, right]: [char; 3]) -> String {
        let parts = self
            .split(widths)
            .map(|widths| "─".repeat(span(widths) + 2));
        let joined = parts.collect::<Vec<_>>().join(&middle.to_string());
        format!("   {left}{joined}{right}\n")
    }

    fn group_names(&self, terminal: Terminal, widths: &[usize]) -> String {
        let parts = self
            .split(widths)
            .zip(&self.groups)
            .map(|(widths, (name, _))| {
                let name = Cell::new(Style::Faint, name.as_str());
                pad(terminal, &name, span(widths), Align::Left)
            });
        format!("   │ {} │\n", parts.collect::<Vec<_>>().join(" │ "))
    }

    fn draw(&self, terminal: Terminal, widths: &[usize], line: &[Cell]) -> String {
        let mut cells = line
            .iter()
            .zip(widths)
            .zip(&self.columns)
            .map(|((cell, &width), &align)| pad(terminal, cell, width, align));
        let parts = self
            .groups
            .iter()
            .map(|(_, count)| cells.by_ref().take(*count).collect::<Vec<_>>().join(GAP));
        let drawn = parts.collect::<Vec<_>>().join(" │ ");
        format!("   │ {drawn} │\n")
    }

    /// The widths group by group.
    fn split<'a>(&'a self, mut widths: &'a [usize]) -> impl Iterator<Item = &'a [usize]> {
        self.groups.iter().map(move |(_, count)| {
            let (group, rest) = widths.split_at(*count);
            widths = rest;
            group
        })
    }
}

/// Between the columns of a group.
const GAP: &str = "  ";

/// How wide neighbouring columns are together.
fn span(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1)
}

/// Every character that is used here takes one column.
fn width(text: &str) -> usize {
    text.chars().count()
}

fn pad(terminal: Terminal, cell: &Cell, width: usize, align: Align) -> String {
    let missing = width.saturating_sub(cell.width());
    let before = match align {
        Align::Left => 0,
        Align::Centre => missing / 2,
        Align::Right => missing,
    };
    let (before, after) = (" ".repeat(before), " ".repeat(missing - before));
    format!("{before}{}{after}", terminal.paint(cell.style, &cell.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_groups_are_divided() {
        let columns = vec![Align::Left, Align::Centre, Align::Centre, Align::Right];
        let groups = vec![
            (String::new(), 1),
            ("by service".to_owned(), 2),
            ("n".to_owned(), 1),
        ];
        let mut table = Table::new(columns).grouped(groups);
        table.header(["", "api", "db", "count"]);
        table.line(vec![
            Cell::plain("web"),
            Cell::new(Style::Good, "✔"),
            Cell::new(Style::Stopped, "✘"),
            Cell::plain("12"),
        ]);
        let expected = "   \
   ╭─────┬────────────┬───────╮
   │     │ by service │ n     │
   │     │ api   db   │ count │
   ├─────┼────────────┼───────┤
   │ web │  ✔     ✘   │    12 │
   ╰─────┴────────────┴───────╯
";
        assert_eq!(table.render(Terminal::plain()), expected);
    }

    #[test]
    fn a_table_without_header_and_groups_is_a_box() {
        let mut table = Table::new(vec![Align::Left, Align::Left]);
        table.line(vec![Cell::plain("a"), Cell::plain("b")]);
        assert_eq!(table.render(Terminal::plain()).lines().count(), 3);
    }
}
