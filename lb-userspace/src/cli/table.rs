//! Tables for people: columns as wide as what is in them, numbers to the right.

use std::fmt::Write as _;

/// Which side a column's cells are pushed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table with a line of headings.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    sides: [Side; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// A table without rows.
    pub(super) fn new(columns: [(&str, Side); N]) -> Self {
        let rows = vec![columns.map(|(heading, _)| heading.to_owned())];
        Self { sides: columns.map(|(_, side)| side), rows }
    }

    /// A row below the others.
    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// The lines, two spaces between columns, none at the end.
    pub(super) fn render(&self) -> String {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), side) in row.iter().zip(widths).zip(self.sides) {
                match side {
                    Side::Left => write!(line, "{cell:<width$}  "),
                    Side::Right => write!(line, "{cell:>width$}  "),
                }
                .expect("a String takes all that is written to it");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new([("A", Side::Left), ("COUNT", Side::Right), ("B", Side::Left)]);
        table.row(["müller".into(), "7".into(), String::new()]);
        table.row(["x".into(), "1234567".into(), "end".into()]);
        assert_eq!(table.render(), "A         COUNT  B\nmüller        7\nx       1234567  end\n");
    }
}
