%%% A NAT between one client and a listener, on loopback: what the client sends goes on from a port
%%% of the NAT's own, which it can be made to forget, and what comes back goes to the client. It may
%%% be narrow: longer datagrams are lost, and nobody is told. It ends with who has started it.
-module(interop_nat).

-export([start/1, start/2, port/1, forget/1, dropped/1]).

-define(LOOPBACK, {127, 0, 0, 1}).
-define(CALL_MS, 10_000).
%% More than any datagram has.
-define(WIDE, 65_536).
%% Bursts must not be lost here.
-define(BUFFER, 4_194_304).

-record(nat, {
    inside :: gen_udp:socket(),
    outside :: gen_udp:socket(),
    server :: inet:port_number(),
    client :: inet:port_number() | undefined,
    most_bytes :: pos_integer(),
    dropped = 0 :: non_neg_integer()
}).

start(ServerPort) -> start(ServerPort, ?WIDE).

start(ServerPort, MostBytes) ->
    Starter = self(),
    Pid = spawn_link(fun() ->
        [Inside, Outside] = [open(), open()],
        Starter ! {self(), port_of(Inside)},
        _ = monitor(process, Starter),
        run(#nat{inside = Inside, outside = Outside, server = ServerPort, most_bytes = MostBytes})
    end),
    receive
        {Pid, Port} -> {Pid, Port}
    after ?CALL_MS -> error(no_nat)
    end.

%% Where the client finds the server.
port({_Pid, Port}) -> Port.

%% From now on, the client's datagrams come from another port: this one. What comes to the former
%% one is lost.
forget(Nat) -> call(Nat, forget).

%% How many datagrams were too long.
dropped(Nat) -> call(Nat, dropped).

call({Pid, _Port}, What) ->
    Ref = make_ref(),
    Pid ! {What, Ref, self()},
    receive
        {Ref, Answer} -> Answer
    after ?CALL_MS -> error(nat_is_stuck)
    end.

run(#nat{inside = Inside, outside = Outside, server = Server, client = Client} = Nat) ->
    receive
        {udp, _, _, _, Data} when byte_size(Data) > Nat#nat.most_bytes ->
            run(Nat#nat{dropped = Nat#nat.dropped + 1});
        {udp, Inside, ?LOOPBACK, Port, Data} ->
            _ = gen_udp:send(Outside, ?LOOPBACK, Server, Data),
            run(Nat#nat{client = Port});
        {udp, Outside, ?LOOPBACK, Server, Data} ->
            _ = gen_udp:send(Inside, ?LOOPBACK, Client, Data),
            run(Nat);
        {forget, Ref, From} ->
            ok = gen_udp:close(Outside),
            Other = open(),
            From ! {Ref, port_of(Other)},
            run(Nat#nat{outside = Other});
        {dropped, Ref, From} ->
            From ! {Ref, Nat#nat.dropped},
            run(Nat);
        {'DOWN', _, process, _, _} ->
            ok;
        %% From the socket that is forgotten.
        {udp, _, _, _, _} ->
            run(Nat)
    end.

open() ->
    Options = [binary, {ip, ?LOOPBACK}, {active, true}, {recbuf, ?BUFFER}, {sndbuf, ?BUFFER}],
    {ok, Socket} = gen_udp:open(0, Options),
    Socket.

port_of(Socket) ->
    {ok, Port} = inet:port(Socket),
    Port.
