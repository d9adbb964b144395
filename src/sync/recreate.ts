/**
 * Replaces a table with its properties. Names the properties that a new table cannot
 * keep.
 *
 * @module
 */
import { ServiceError } from "../errors.ts";
import type { Session } from "../postgres/session.ts";
import { literal, qualified } from "../postgres/sql.ts";
import { formatTypeName } from "../tables/column_types.ts";
import {
  BASE_TYPE,
  formatRelation,
  type Table,
  type TableDeclaration,
} from "../tables/declaration.ts";

/** A property of the old table, and the SQL that gives it to the new one. */
interface Belonging {
  /** Name in messages. */
  readonly what: string;
  readonly sql: string;
}

/** Returns the failure of a table that cannot be replaced without losing these objects. */
export function notCarried(
  { name, target }: TableDeclaration,
  losses: readonly string[],
  cause?: ServiceError,
): ServiceError {
  return new ServiceError(
    "target_in_use",
    `${
      formatRelation(target)
    } in the warehouse cannot be recreated without a loss: ${
      losses.join("; ")
    }`,
    {
      table: name,
      cause,
      sqlstate: cause?.sqlstate,
    },
  );
}

/**
 * Checks that dropping the table loses nothing.
 *
 * @throws {ServiceError} `target_in_use`, naming the objects that would be lost.
 */
export async function checkReplaceable(
  table: Table,
  warehouse: Session,
  oid: number,
): Promise<void> {
  const columns = table.columns.map(({ name }) => literal(name));
  const types = table.columns.map(({ name, type }) =>
    `(${literal(name)}, ${literal(formatTypeName(type))})`
  );
  const rows = await warehouse.query<{ loss: string }>(`
    with recursive
    -- The objects that a DROP without CASCADE also drops.
    gone (classid, objid) as (
      values ('pg_catalog.pg_class'::pg_catalog.regclass::oid, ${oid}::oid)
      union
      select d.classid, d.objid from gone join pg_catalog.pg_depend d
        on d.refclassid = gone.classid and d.refobjid = gone.objid
      where d.deptype in ('a', 'i')
    ),
    -- The objects for which a DROP without CASCADE fails. A view depends by its rule.
    dependent as (
      select distinct case when w.oid is null then d.classid else 'pg_catalog.pg_class'::pg_catalog.regclass::oid end as classid,
        coalesce(w.ev_class, d.objid) as objid
      from gone join pg_catalog.pg_depend d on d.refclassid = gone.classid and d.refobjid = gone.objid
        left join pg_catalog.pg_rewrite w on d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
          and w.oid = d.objid and w.ev_type = '1'
      where d.deptype = 'n' and not exists (select from gone g where g.classid = d.classid and g.objid = d.objid)
    ),
    -- The objects on columns that the new table lacks.
    homeless as (
      select pg_catalog.pg_describe_object(d.classid, d.objid, 0) || ' on column '
        || pg_catalog.quote_ident(a.attname) as loss
      from pg_catalog.pg_depend d join pg_catalog.pg_attribute a
        on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
      where d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = ${oid} and d.refobjsubid > 0
        and a.attname not in (${columns})
        and (d.classid in ('pg_catalog.pg_trigger'::pg_catalog.regclass, 'pg_catalog.pg_policy'::pg_catalog.regclass,
            'pg_catalog.pg_statistic_ext'::pg_catalog.regclass)
          or d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
            and d.objid in (select indexrelid from pg_catalog.pg_index where indrelid = ${oid})
          or d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass
            and d.objid in (select oid from pg_catalog.pg_constraint where conrelid = ${oid} and contype <> 'n')
          or d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass
            and d.objid in (select oid from pg_catalog.pg_rewrite where ev_class = ${oid}))
    )
    select pg_catalog.pg_describe_object(classid, objid, 0) as loss from dependent
    union select loss from homeless
    union select 'its partitions' from pg_catalog.pg_class c where c.oid = ${oid} and c.relkind = 'p'
    union select 'its access method ' || pg_catalog.quote_ident(m.amname)
      from pg_catalog.pg_class c join pg_catalog.pg_am m on m.oid = c.relam
      where c.oid = ${oid} and m.amname <> pg_catalog.current_setting('default_table_access_method')
        and ${!hasAlterableAccessMethod(warehouse)}
    union select pg_catalog.format('type %s of column %I, which role %I may not use', pg_catalog.format_type(t.oid, null), a.attname, current_user)
      from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid and t.typtype = 'd'
        cross join lateral ${BASE_TYPE} base
      where a.attrelid = ${oid} and (a.attname, pg_catalog.format_type(base.oid, base.typmod)) in (${types})
        and not (pg_catalog.has_schema_privilege(t.typnamespace, 'USAGE') and pg_catalog.has_type_privilege(t.oid, 'USAGE'))
    union select 'its place under ' || inhparent::pg_catalog.regclass::text
      from pg_catalog.pg_inherits where inhrelid = ${oid}
    union select 'its place in ' || pg_catalog.pg_describe_object(refclassid, refobjid, 0)
      from pg_catalog.pg_depend where classid = 'pg_catalog.pg_class'::pg_catalog.regclass and objid = ${oid} and deptype = 'e'
    union select pg_catalog.pg_describe_object(d.classid, d.objid, 0)
      from pg_catalog.pg_depend d join pg_catalog.pg_class s on s.oid = d.objid and s.relkind = 'S'
      where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
        and d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass and d.refobjid = ${oid} and d.deptype in ('a', 'i')
    union select 'its rows from subscription ' || pg_catalog.quote_ident(s.subname)
      from pg_catalog.pg_subscription_rel r join pg_catalog.pg_subscription s on s.oid = r.srsubid where r.srrelid = ${oid}
    union select 'its place in publication ' || pg_catalog.quote_ident(p.pubname) || ', which role '
        || pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(p.pubowner)) || ' owns'
      from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
      where r.prrelid = ${oid} and not pg_catalog.pg_has_role(p.pubowner, 'USAGE')
    union select 'its owner, role ' || pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner))
      from pg_catalog.pg_class c
      where c.oid = ${oid} and not (pg_catalog.pg_has_role(c.relowner, 'USAGE')
        and (pg_catalog.pg_get_userbyid(c.relowner) = current_user
          or pg_catalog.has_schema_privilege(c.relowner, c.relnamespace, 'CREATE')))
    order by loss`);
  if (rows.length > 0) throw notCarried(table, rows.map(({ loss }) => loss));
}

/** Returns whether ALTER TABLE can set the access method. */
function hasAlterableAccessMethod({ serverVersion }: Session): boolean {
  return Number.parseInt(serverVersion) >= 15;
}

/** Returns SQL that gives the empty `relation` the storage options, domains and collations of the old table. */
export async function storageOf(
  warehouse: Session,
  oid: number,
  relation: string,
): Promise<readonly string[]> {
  const to = literal(`alter table ${relation} `);
  const created = `${literal(relation)}::pg_catalog.regclass`;
  const shared = `cross join lateral ${BASE_TYPE} base
      join pg_catalog.pg_attribute f on f.attrelid = ${created}
        and f.attname = a.attname and f.atttypid in (a.atttypid, base.oid)`;
  const rows = await warehouse.query<{ sql: string }>(`
    select ${to} || pg_catalog.format('set access method %I', m.amname) as sql
      from pg_catalog.pg_class c join pg_catalog.pg_am m on m.oid = c.relam
        join pg_catalog.pg_class f on f.oid = ${created} and f.relam <> c.relam where c.oid = ${oid}
    union all select ${to} || pg_catalog.format('alter column %I type %s%s', a.attname,
        case when f.atttypid = base.oid and f.atttypmod = base.typmod then pg_catalog.format_type(a.atttypid, a.atttypmod)
          else pg_catalog.format_type(f.atttypid, f.atttypmod) end,
        (select pg_catalog.format(' collate %I.%I', n.nspname, l.collname)
         from pg_catalog.pg_collation l join pg_catalog.pg_namespace n on n.oid = l.collnamespace where l.oid = a.attcollation))
      from pg_catalog.pg_attribute a ${shared}
      where a.attrelid = ${oid} and a.attnum > 0 and not a.attisdropped
        and (a.atttypid <> f.atttypid and f.atttypmod = base.typmod or a.attcollation <> f.attcollation)
    union all select ${to} || 'set unlogged' from pg_catalog.pg_class where oid = ${oid} and relpersistence = 'u'
    union all select ${to} || pg_catalog.format('set tablespace %I', t.spcname)
      from pg_catalog.pg_class c join pg_catalog.pg_tablespace t on t.oid = c.reltablespace where c.oid = ${oid}
    union all select ${to} || pg_catalog.format('set (%s = %L)', o.option_name, o.option_value)
      from pg_catalog.pg_class c, pg_catalog.pg_options_to_table(c.reloptions) o where c.oid = ${oid}
    union all select ${to} || pg_catalog.format('set (toast.%s = %L)', o.option_name, o.option_value)
      from pg_catalog.pg_class c join pg_catalog.pg_class t on t.oid = c.reltoastrelid,
        pg_catalog.pg_options_to_table(t.reloptions) o where c.oid = ${oid}
    union all select ${to} || pg_catalog.format('alter column %I set storage %s', a.attname,
        case a.attstorage when 'p' then 'plain' when 'e' then 'external' when 'm' then 'main' else 'extended' end)
      from pg_catalog.pg_attribute a ${shared}
      where a.attrelid = ${oid} and a.attnum > 0 and not a.attisdropped and a.attstorage <> f.attstorage
    union all select ${to} || pg_catalog.format('alter column %I set compression %s', a.attname,
        case a.attcompression when 'p' then 'pglz' else 'lz4' end)
      from pg_catalog.pg_attribute a ${shared}
      where a.attrelid = ${oid} and a.attnum > 0 and not a.attisdropped and a.attcompression <> ''`);
  return rows.map(({ sql }) => sql);
}

/**
 * Returns the properties of the old table. The new one gets them in this order after
 * it has the old name.
 */
export async function belongingsOf(
  table: Table,
  warehouse: Session,
  oldOid: number,
  newOid: number,
): Promise<readonly Belonging[]> {
  const belongings: Belonging[] = [];
  for (const sql of belongingQueries(table, warehouse, oldOid, newOid)) {
    belongings.push(
      ...await warehouse.query<{ what: string; sql: string }>(sql),
    );
  }
  return belongings;
}

/** One query for each kind of property, with columns `what` and `sql`. Dependencies come first. */
function belongingQueries(
  { columns, target }: Table,
  { serverVersion }: Session,
  oid: number,
  newOid: number,
): readonly string[] {
  const relation = literal(qualified(target));
  const alter = literal(`alter table ${qualified(target)} `);
  /** Columns that both tables have. */
  const kept =
    `(select * from pg_catalog.pg_attribute where attrelid = ${oid} and attnum > 0 and not attisdropped
      and attname in (${columns.map(({ name }) => literal(name))})) a`;
  const isKeptKey = `conkey[1] in (select a.attnum from ${kept})`;
  const hasColumnLists = Number.parseInt(serverVersion) >= 15;
  return [
    `select 'its type' as what, ${alter} || 'of ' || pg_catalog.format_type(reloftype, null) as sql
     from pg_catalog.pg_class where oid = ${oid} and reloftype <> 0`,
    `select 'its owner' as what, ${alter} || pg_catalog.format('owner to %I', pg_catalog.pg_get_userbyid(relowner)) as sql
     from pg_catalog.pg_class where oid = ${oid} and pg_catalog.pg_get_userbyid(relowner) <> current_user`,
    `select 'a default' as what, ${alter} || pg_catalog.format('alter column %I set default %s', a.attname,
       pg_catalog.pg_get_expr(d.adbin, d.adrelid)) as sql
     from ${kept} join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
     where a.attgenerated = ''`,
    // Before PostgreSQL 18, no constraint names it.
    `select 'NOT NULL' as what, ${alter} || pg_catalog.format('alter column %I set not null', a.attname) as sql
     from ${kept} where a.attnotnull and not exists (select from pg_catalog.pg_constraint n
       where n.conrelid = a.attrelid and n.contype = 'n' and n.conkey[1] = a.attnum)`,
    `select 'constraint ' || pg_catalog.quote_ident(conname) as what, ${alter} || pg_catalog.format('add constraint %I %s', conname,
       pg_catalog.pg_get_constraintdef(oid)) as sql
     from pg_catalog.pg_constraint where conrelid = ${oid} and contype in ('n', 'p', 'u', 'x', 'c')
       and (contype <> 'n' or ${isKeptKey})
     order by pg_catalog.array_position(array['n', 'p', 'u', 'x', 'c']::"char"[], contype), conname`,
    `select 'index ' || pg_catalog.quote_ident(i.relname) as what, pg_catalog.pg_get_indexdef(x.indexrelid) as sql
     from pg_catalog.pg_index x join pg_catalog.pg_class i on i.oid = x.indexrelid
     where x.indrelid = ${oid} and not exists (select from pg_catalog.pg_constraint
       where conindid = x.indexrelid and conrelid = ${oid} and contype in ('p', 'u', 'x'))
     order by i.relname`,
    `select 'the storage of index ' || pg_catalog.quote_ident(i.relname) as what,
       'alter index ' || i.oid::pg_catalog.regclass::text || change as sql
     from pg_catalog.pg_index x join pg_catalog.pg_class i on i.oid = x.indexrelid, lateral (
       select pg_catalog.format(' set tablespace %I', t.spcname) from pg_catalog.pg_tablespace t where t.oid = i.reltablespace
       -- The definition of a constraint does not contain them.
       union all select pg_catalog.format(' set (%s = %L)', o.option_name, o.option_value)
         from pg_catalog.pg_options_to_table(i.reloptions) o
       union all select pg_catalog.format(' alter column %s set statistics %s', a.attnum, a.attstattarget)
         from pg_catalog.pg_attribute a where a.attrelid = i.oid and coalesce(a.attstattarget, -1) >= 0) changes (change)
     where x.indrelid = ${oid}`,
    // After keys and indexes, because a foreign key can refer to its own table.
    `select 'constraint ' || pg_catalog.quote_ident(conname) as what, ${alter} || pg_catalog.format('add constraint %I %s', conname,
       pg_catalog.pg_get_constraintdef(oid)) as sql
     from pg_catalog.pg_constraint where conrelid = ${oid} and contype = 'f' order by conname`,
    `select 'its clustering' as what, ${alter} || pg_catalog.format('cluster on %I', i.relname) as sql
     from pg_catalog.pg_index x join pg_catalog.pg_class i on i.oid = x.indexrelid
     where x.indrelid = ${oid} and x.indisclustered`,
    `select 'its replica identity' as what, ${alter} || 'replica identity ' || case c.relreplident
       when 'f' then 'full' when 'n' then 'nothing' else pg_catalog.format('using index %I', i.relname) end as sql
     from pg_catalog.pg_class c left join pg_catalog.pg_index x on x.indrelid = c.oid and x.indisreplident
       left join pg_catalog.pg_class i on i.oid = x.indexrelid
     where c.oid = ${oid} and (c.relreplident in ('f', 'n') or c.relreplident = 'i' and i.oid is not null)`,
    `select 'a statistics target' as what,
       ${alter} || pg_catalog.format('alter column %I set statistics %s', a.attname, a.attstattarget) as sql
     from ${kept} where coalesce(a.attstattarget, -1) >= 0`,
    `select 'a column option' as what,
       ${alter} || pg_catalog.format('alter column %I set (%s = %L)', a.attname, o.option_name, o.option_value) as sql
     from ${kept}, pg_catalog.pg_options_to_table(a.attoptions) o`,
    `select 'statistics ' || pg_catalog.quote_ident(stxname) as what, pg_catalog.pg_get_statisticsobjdef(oid) as sql
     from pg_catalog.pg_statistic_ext where stxrelid = ${oid} order by stxname`,
    `select 'a statistics target' as what,
       pg_catalog.format('alter statistics %I.%I set statistics %s', n.nspname, stxname, stxstattarget) as sql
     from pg_catalog.pg_statistic_ext join pg_catalog.pg_namespace n on n.oid = stxnamespace
     where stxrelid = ${oid} and coalesce(stxstattarget, -1) >= 0`,
    `select 'rule ' || pg_catalog.quote_ident(rulename) as what, pg_catalog.pg_get_ruledef(oid) as sql
     from pg_catalog.pg_rewrite where ev_class = ${oid} order by rulename`,
    `select 'rule ' || pg_catalog.quote_ident(rulename) as what, ${alter} || pg_catalog.format('%s rule %I',
       case ev_enabled when 'D' then 'disable' when 'R' then 'enable replica' else 'enable always' end, rulename) as sql
     from pg_catalog.pg_rewrite where ev_class = ${oid} and ev_enabled <> 'O'`,
    `select 'trigger ' || pg_catalog.quote_ident(tgname) as what, pg_catalog.pg_get_triggerdef(oid) as sql
     from pg_catalog.pg_trigger where tgrelid = ${oid} and not tgisinternal order by tgname`,
    `select 'trigger ' || pg_catalog.quote_ident(tgname) as what, ${alter} || pg_catalog.format('%s trigger %I',
       case tgenabled when 'D' then 'disable' when 'R' then 'enable replica' else 'enable always' end, tgname) as sql
     from pg_catalog.pg_trigger where tgrelid = ${oid} and not tgisinternal and tgenabled <> 'O'`,
    `select 'policy ' || pg_catalog.quote_ident(p.polname) as what,
       pg_catalog.format('create policy %I on %s as %s for %s to %s%s%s', p.polname, ${relation},
         case when p.polpermissive then 'permissive' else 'restrictive' end,
         case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
         (select pg_catalog.string_agg(${
      roleName("r")
    }, ', ') from pg_catalog.unnest(p.polroles) r),
         ' using (' || pg_catalog.pg_get_expr(p.polqual, p.polrelid) || ')',
         ' with check (' || pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) || ')') as sql
     from pg_catalog.pg_policy p where p.polrelid = ${oid} order by p.polname`,
    `select 'row-level security' as what, ${alter} || 'enable row level security' as sql
     from pg_catalog.pg_class where oid = ${oid} and relrowsecurity`,
    `select 'row-level security' as what, ${alter} || 'force row level security' as sql
     from pg_catalog.pg_class where oid = ${oid} and relforcerowsecurity`,
    `select 'a comment' as what, pg_catalog.format('comment on %s is %L', thing, d.description) as sql
     from pg_catalog.pg_description d join (
       select 'pg_catalog.pg_class'::pg_catalog.regclass::oid, oid, 0, 'table ' || ${relation}
         from pg_catalog.pg_class where oid = ${oid}
       union all select 'pg_catalog.pg_class'::pg_catalog.regclass, a.attrelid, a.attnum,
           pg_catalog.format('column %s.%I', ${relation}, a.attname) from ${kept}
       union all select 'pg_catalog.pg_class'::pg_catalog.regclass, i.oid, 0,
           pg_catalog.format('index %I.%I', n.nspname, i.relname)
         from pg_catalog.pg_index x join pg_catalog.pg_class i on i.oid = x.indexrelid
           join pg_catalog.pg_namespace n on n.oid = i.relnamespace where x.indrelid = ${oid}
       union all select 'pg_catalog.pg_constraint'::pg_catalog.regclass, oid, 0,
           pg_catalog.format('constraint %I on %s', conname, ${relation})
         from pg_catalog.pg_constraint where conrelid = ${oid} and (contype <> 'n' or ${isKeptKey})
       union all select 'pg_catalog.pg_trigger'::pg_catalog.regclass, oid, 0,
           pg_catalog.format('trigger %I on %s', tgname, ${relation})
         from pg_catalog.pg_trigger where tgrelid = ${oid}
       union all select 'pg_catalog.pg_rewrite'::pg_catalog.regclass, oid, 0,
           pg_catalog.format('rule %I on %s', rulename, ${relation})
         from pg_catalog.pg_rewrite where ev_class = ${oid}
       union all select 'pg_catalog.pg_policy'::pg_catalog.regclass, oid, 0,
           pg_catalog.format('policy %I on %s', polname, ${relation})
         from pg_catalog.pg_policy where polrelid = ${oid}
       union all select 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass, s.oid, 0,
           pg_catalog.format('statistics %I.%I', n.nspname, stxname)
         from pg_catalog.pg_statistic_ext s join pg_catalog.pg_namespace n on n.oid = s.stxnamespace where stxrelid = ${oid}
     ) things (classoid, objoid, objsubid, thing) using (classoid, objoid, objsubid)`,
    `select 'a security label' as what, pg_catalog.format('security label for %I on %s is %L', l.provider,
       case when l.objsubid = 0 then 'table ' || ${relation}
         else pg_catalog.format('column %s.%I', ${relation}, a.attname) end, l.label) as sql
     from pg_catalog.pg_seclabel l left join ${kept} on a.attnum = l.objsubid
     where l.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass and l.objoid = ${oid}
       and (l.objsubid = 0 or a.attnum is not null)`,
    `select 'publication ' || pg_catalog.quote_ident(p.pubname) as what,
       pg_catalog.format('alter publication %I add table %s%s', p.pubname, ${relation}, ${
      hasColumnLists
        ? `coalesce((select ' (' || pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' order by a.attnum) || ')'
           from pg_catalog.pg_attribute a where a.attrelid = r.prrelid and a.attnum = any (r.prattrs)), '')
         || coalesce(' where (' || pg_catalog.pg_get_expr(r.prqual, r.prrelid) || ')', '')`
        : "''"
    }) as sql
     from pg_catalog.pg_publication_rel r join pg_catalog.pg_publication p on p.oid = r.prpubid
     where r.prrelid = ${oid} order by p.pubname`,
    // Exactly the old privileges: default privileges may give the new table more.
    `select distinct 'its privileges' as what, pg_catalog.format('revoke all on %s from %s', ${relation}, ${
      roleName("grantee")
    }) as sql from (
       select x.grantee from pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) x
         where c.oid = ${newOid} and x.grantee <> c.relowner
       union select relowner from pg_catalog.pg_class where oid = ${oid} and relacl is not null) grantees`,
    `select 'a privilege' as what, pg_catalog.format('grant %s on %s to %s%s', x.privilege_type, ${relation}, ${
      roleName("x.grantee")
    }, case when x.is_grantable and x.grantee <> c.relowner then ' with grant option' else '' end) as sql
     from pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) x where c.oid = ${oid}`,
    `select 'a privilege' as what, pg_catalog.format('grant %s (%I) on %s to %s%s', x.privilege_type, a.attname, ${relation}, ${
      roleName("x.grantee")
    }, case when x.is_grantable then ' with grant option' else '' end) as sql
     from ${kept}, pg_catalog.aclexplode(a.attacl) x`,
  ];
}

/** Returns an SQL expression of a role's name. 0 means all roles. */
function roleName(oid: string): string {
  return `case when ${oid} = 0 then 'public' else pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(${oid})) end`;
}
