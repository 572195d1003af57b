%%% Terms of every type, at random, for functions that have to bear all of them. Nothing made here
%%% names a host beyond loopback, a port that somebody may listen at, a file, or a process that must
%%% not be stopped.
-module(mesh_terms).

-export([seed/2, term/1, pick/1, path/0, address/1, remote_pid/0]).

-export_type([things/0]).

%% Things that only a running system has: handles of each kind, pids, and so on.
-type things() :: [term()].

%% Deep enough to end anything that recurses over terms without a bound.
-define(DEEP, 20_000).
-define(LARGE_BYTES, 100_000).

%% From here on this process makes the terms that belong to these numbers.
seed(Seed, Index) ->
    _ = rand:seed(exsss, {Seed, Index, 0}),
    ok.

%% Any term, or one of these things.
term(Things) ->
    case rand:uniform(3) of
        1 -> pick(Things);
        _ -> made(Things, 3)
    end.

pick(List) -> lists:nth(rand:uniform(length(List)), List).

%% The name of a file that is not there, in all forms that a path is given in.
path() ->
    Text = "/nonexistent/" ++ [pick("ab\x{e4}\x{20ac} .") || _ <- lists:seq(1, rand:uniform(20))],
    Long = lists:duplicate(5_000, $/),
    pick([Text, unicode:characters_to_binary(Text), Long, <<"/nonexistent">>]).

%% An address, whole or nearly so, of this port of the machine itself.
address(Port) ->
    pick([
        {{127, 0, 0, 1}, Port},
        {"localhost", Port},
        {<<"127.0.0.1">>, Port},
        "127.0.0.1:" ++ integer_to_list(Port),
        <<"https://127.0.0.1:", (integer_to_binary(Port))/binary, "/path?query">>,
        {{127, 0, 0, 257}, Port},
        {{127, 0, 0, -1}, Port},
        {{127, 0, 0, 1 bsl 32 + 1}, Port},
        {{0, 0, 0, 0, 0, 0, 0, 16#10000}, Port},
        {{127, 0, 0, 1}, Port + 65_536},
        {{127, 0, 0, 1}, 0},
        {{127, 0, 0, 1}, -Port},
        {"127.0.0.1", 1 bsl 64 + Port},
        {{127, 0, 0}, Port},
        {[127, 0, 0 | 1], Port},
        <<"127.0.0.1:", 255, 254>>,
        <<"127.0.0.1:99999">>,
        <<1:1, "127.0.0.1:4433">>,
        [<<"127.0.0.1">>, $:, "4433"],
        [16#110000, $:, $1],
        [16#d800, $:, $1]
    ]).

%%% By type

made(_Things, 0) -> scalar();
made(Things, Depth) ->
    case rand:uniform(12) of
        N when N =< 7 -> scalar();
        8 -> list(Things, Depth - 1);
        9 -> tuple(Things, Depth - 1);
        10 -> map(Things, Depth - 1);
        11 -> function();
        12 -> deep(rand:uniform(3))
    end.

scalar() ->
    case rand:uniform(7) of
        1 -> integer();
        2 -> atom();
        3 -> binary();
        4 -> bitstring();
        5 -> pid_or_such();
        6 -> text();
        7 -> pick([0.0, -0.0, 1.5, 1.0e308, make_ref()])
    end.

%% On both sides of every width that an integer is decoded to.
integer() ->
    Width = pick([0, 1, 7, 8, 15, 16, 31, 32, 59, 60, 62, 63, 64, 65, 128, 4_000]),
    pick([1, -1]) * ((1 bsl Width) + pick([-1, 0, 1])).

atom() ->
    pick([
        '',
        true,
        false,
        undefined,
        infinity,
        ok,
        once,
        none,
        peer,
        raw,
        macula,
        active,
        disable,
        closed,
        '\x{20ac}\x{1f600}',
        list_to_atom(lists:duplicate(255, $a)),
        a_name_that_nobody_has
    ]).

%% Small, large, on both sides of where binaries are shared, and parts of others.
binary() ->
    Size = pick([0, 1, 7, 8, 32, 63, 64, 65, 255, 256, 8_191, 8_192, ?LARGE_BYTES]),
    Bytes = binary:copy(<<(rand:uniform(256) - 1)>>, Size + 2),
    pick([binary:part(Bytes, 1, Size), binary:copy(binary:part(Bytes, 0, Size)), shifted(Bytes)]).

%% A binary that begins within a byte of another one.
shifted(Bytes) ->
    <<_:3, Rest/bitstring>> = Bytes,
    Whole = bit_size(Rest) div 8 * 8,
    <<Part:Whole/bitstring, _/bitstring>> = Rest,
    Part.

bitstring() -> pick([<<1:1>>, <<0:7>>, <<"text", 5:3>>, <<-1:65>>]).

%% No host's name: a look-up would leave the machine.
text() ->
    [$! | [pick([$a, $:, $/, $[, $], 0, 10, 255, 16#20ac]) || _ <- lists:seq(1, rand:uniform(30))]].

list(Things, Depth) ->
    Elements = [made(Things, Depth) || _ <- lists:seq(1, rand:uniform(6))],
    pick([
        Elements,
        Elements ++ improper_end,
        [],
        [{pick([active, verify, alpn, cert, certfile, depth]), Element} || Element <- Elements],
        lists:duplicate(3_000, pick([$a, 1, <<"element">>])),
        [pick(Things) | Elements]
    ]).

%% Never as long as an IP address: it would be one of another machine.
tuple(Things, Depth) ->
    Elements = [made(Things, Depth) || _ <- lists:seq(1, rand:uniform(3))],
    pick([list_to_tuple(Elements), {}, {pick(Things), hd(Elements)}, erlang:make_tuple(300, x)]).

map(Things, Depth) ->
    Pairs = [{made(Things, Depth), made(Things, Depth)} || _ <- lists:seq(1, rand:uniform(40))],
    maps:from_list(Pairs).

function() -> pick([fun erlang:halt/1, fun(X) -> X end, fun nowhere:never/3]).

deep(1) -> lists:foldl(fun(_, Term) -> [Term] end, [], lists:seq(1, ?DEEP));
deep(2) -> lists:foldl(fun(_, Term) -> {Term, x} end, {}, lists:seq(1, ?DEEP));
deep(3) -> lists:foldl(fun(_, Term) -> #{x => Term} end, #{}, lists:seq(1, ?DEEP)).

%% Pids, ports and references, also such as come from other nodes (external term format).
pid_or_such() ->
    pick([
        self(),
        dead(),
        remote_pid(),
        remote(<<89>>, <<4:32, 5:32>>),
        remote(<<90, 1:16>>, <<6:32, 7:32>>),
        hd(erlang:ports())
    ]).

remote_pid() -> remote(<<88>>, <<1:32, 2:32, 3:32>>).

remote(Tag, Numbers) ->
    {Kind, Length} = split(Tag),
    Name = <<"elsewhere@nowhere">>,
    Node = <<119, (byte_size(Name)), Name/binary>>,
    binary_to_term(<<131, Kind/binary, Length/binary, Node/binary, Numbers/binary>>).

split(<<Kind:1/binary, Length/binary>>) -> {Kind, Length}.

dead() ->
    {Pid, Monitor} = spawn_monitor(fun() -> ok end),
    receive
        {'DOWN', Monitor, process, Pid, _} -> Pid
    end.
